"""Objectives that are not quadratic in one side, a half-step at a time.

A half-step first *looks*: a pass over the cells with the factors as they are gives the exact loss and what the
improvement of the rows needs. Then every row is improved, so that the loss cannot rise.

``swivel``: the losses of unobserved cells are bounded from above by parabolas that touch them where the factors are::

    ln(1 + exp x) <= ln(1 + exp x0) + sigmoid(x0) (x - x0) + (x - x0)^2 / 8

which is the engine's own objective with rho = 1/8 and one more term in the right-hand side. The look goes over every
cell of the dense matrix, 4 m n k operations in blocks: Swivel's own cost, for a loss that no Gramian holds.

Both are improved by the processors, also where a rank has a GPU.

``squared_norm``: a damped Gauss-Newton step per row, and z = sum w e / sum w in closed form.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from wals_spark.objective import Objective
from wals_spark.wals.solvers.cpu import TILE, CpuSolver, Solver, row_chunks
from wals_spark.wals.solvers.row_block import RowBlock
from wals_spark.wals.solvers.system import System, one_blas_thread

DENSE_ROWS, DENSE_COLS = 256, 4096


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


class Curved(ABC):
    """One side's look and improvement.

    Parameters
    ----------
    threads : int
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads

    @abstractmethod
    def look(self, block: RowBlock, features: np.ndarray, start: np.ndarray, offsets: Offsets) -> np.ndarray:
        """Sums per row from which `loss` makes the loss.

        Parameters
        ----------
        block : RowBlock
        features : array of shape (n, k)
            The fixed side.
        start : array of shape (r, k)
            The own rows.
        offsets : Offsets

        Returns
        -------
        float64 array of shape (r, s)
        """

    @abstractmethod
    def loss(self, sums: np.ndarray) -> float:
        """The loss without regularisation, from the sums of the rows of all ranks; shape (m, s)."""

    @abstractmethod
    def improve(self, block: RowBlock, system: System, solver: Solver) -> np.ndarray:
        """Better rows than ``system.start``, for the look that was taken at them."""


class Softplus(Curved):
    """``swivel``, see the module."""

    pull: np.ndarray

    def look(self, block: RowBlock, features: np.ndarray, start: np.ndarray, offsets: Offsets) -> np.ndarray:
        from wals_spark.wals.solvers.kernels.softplus import expand_cells

        dtype = features.dtype
        own, others, filled = (array.astype(dtype) for array in offsets)
        self.pull = np.zeros((len(block), features.shape[1]))
        row_loss = np.zeros(len(block))
        rho = dtype.type(0.125)

        def expand(begin: int) -> None:
            rows = np.arange(begin, min(begin + DENSE_ROWS, len(block)))
            for first in range(0, len(features), DENSE_COLS):
                cols = slice(first, first + DENSE_COLS)
                s = start[rows] @ features[cols].T  # (B, C)
                gradient = np.empty_like(s)
                expand_cells(
                    s, rows, first, block.indptr, block.indices, block.target, block.weight, rho, own[rows],
                    others[cols], filled[cols], gradient, row_loss,
                )  # fmt: skip
                self.pull[rows] += gradient @ features[cols]

        with one_blas_thread(), ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(expand, range(0, len(block), DENSE_ROWS)))
        return row_loss[:, None]

    def loss(self, sums: np.ndarray) -> float:
        return float(sums.sum())

    def improve(self, block: RowBlock, system: System, solver: Solver) -> np.ndarray:
        assert system.start is not None
        fixed = system.fixed_factors
        pull = self.pull + fixed.rho * (system.start @ fixed.gramian)
        if not isinstance(solver, CpuSolver):
            solver = CpuSolver(self.threads, dual=True)
        solved, _ = solver.solve(block, replace(system, linear_term=pull))
        return solved


class SquaredNorm(Curved):
    """``squared_norm``, see the module.

    Attributes
    ----------
    z : float
        The constant of the predictions, from the last `loss`.
    """

    z = 0.0

    def look(self, block: RowBlock, features: np.ndarray, start: np.ndarray, offsets: Offsets) -> np.ndarray:
        from wals_spark.wals.solvers.kernels.gauss_newton import sum_residuals

        sums = np.zeros((len(block), 3))

        def add(rows: np.ndarray) -> None:
            sum_residuals(rows, block.indptr, block.indices, block.target, block.weight, features, start, sums)

        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(add, row_chunks(block, features.shape[1], self.threads)))
        return sums

    def loss(self, sums: np.ndarray) -> float:
        weight, first, second = sums.sum(0)
        self.z = float(first / weight)
        return float(second - first * self.z)

    def improve(self, block: RowBlock, system: System, solver: Solver) -> np.ndarray:
        from wals_spark.wals.solvers.kernels.gauss_newton import improve_rows

        assert system.start is not None
        v, out = system.fixed_factors.z, system.start.copy()

        def work(rows: np.ndarray) -> None:
            improve_rows(
                rows, block.indptr, block.indices, block.target, block.weight, v, self.z, system.ridge[:, 0], out, TILE
            )  # fmt: skip

        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(work, row_chunks(block, out.shape[1], self.threads)))
        return out


def make_curved(objective: Objective, threads: int) -> Curved | None:
    """What improves the rows of an objective; None where it is quadratic in each side."""
    if objective.is_quadratic:
        return None
    return SquaredNorm(threads) if objective.prediction == "squared_norm" else Softplus(threads)
