"""Row and column sums of a matrix, which targets and popularities are functions of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Marginals:
    """Sums of the matrix, in weighted counts.

    Attributes
    ----------
    rows, cols : float64 arrays of shape (m,) and (n,)
        Row and column sums r and c.
    row_cells, col_cells : int64 arrays of shape (m,) and (n,)
        Observed cells per row and column that count, see `Objective.counted`.
    """

    rows: np.ndarray
    cols: np.ndarray
    row_cells: np.ndarray
    col_cells: np.ndarray

    @property
    def total(self) -> float:
        """Sum of all cells."""
        return float(self.rows.sum())

    @property
    def transposed(self) -> Marginals:
        """Those of the transposed matrix."""
        return Marginals(self.cols, self.rows, self.col_cells, self.row_cells)
