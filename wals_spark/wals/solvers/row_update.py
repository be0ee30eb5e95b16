"""What a half-step does with the rows of an objective that is not quadratic in them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np

from wals_spark.wals.solvers.cpu import Solver
from wals_spark.wals.solvers.row_block import RowBlock
from wals_spark.wals.solvers.system import System


class Offsets(NamedTuple):
    """What the marginals give to the predictions, see `Objective.offsets`.

    Attributes
    ----------
    rows : float64 array of shape (r,)
        b_i of the rows of a block.
    others : float64 array of shape (n,)
        c_j of the rows of the fixed side.
    filled : bool array of shape (n,)
        Which of these have observed cells.
    """

    rows: np.ndarray
    others: np.ndarray
    filled: np.ndarray


class RowUpdate(ABC):
    """The evaluation of the loss at the factors as they are, then an update of every row by which it cannot rise.

    Parameters
    ----------
    threads : int

    Attributes
    ----------
    constant : float
        A number that is part of every prediction, from the last `loss`; 0 where the objective has none.
    """

    constant = 0.0

    def __init__(self, threads: int) -> None:
        self.threads = threads

    @abstractmethod
    def evaluate(self, block: RowBlock, start: np.ndarray, z: np.ndarray, offsets: Offsets) -> np.ndarray:
        """Sums per row from which `loss` makes the loss; keeps what `update_rows` needs of this pass.

        Parameters
        ----------
        block : RowBlock
        start : array of shape (r, k)
            The rows of the block as they are.
        z : array of shape (n, k)
            The factors of the fixed side.
        offsets : Offsets

        Returns
        -------
        float64 array of shape (r, s)
        """

    @abstractmethod
    def loss(self, sums: np.ndarray) -> float:
        """The loss without regularisation, from the sums of the rows of all ranks; shape (m, s)."""

    @abstractmethod
    def update_rows(self, block: RowBlock, system: System, solver: Solver) -> np.ndarray:
        """Better rows than ``system.start``, at which the last `evaluate` was; shape (r, k)."""
