"""What a solver solves at a time: some rows with their observed cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class RowBlock:
    """Some rows of one side of the matrix with their observed cells, in compressed sparse rows.

    The "rows" of the side "col" are the columns of the matrix. Two blocks are equal only if they are one object, so
    that a solver may keep what it made of a block by the block itself.

    Attributes
    ----------
    ids : int64 array of shape (r,)
        Ids of the rows, rising; a solver names rows by them in messages.
    indptr : int64 array of shape (r + 1,)
    indices : int32 array of shape (nnz,)
        Positions among the rows of `wals_spark.wals.solvers.system.FixedFactors`, rising within a row.
    target, weight : arrays of shape (nnz,)
        m_ij, and d_ij, the weight of an observed cell beyond that of an unobserved one.
    popularity : float64 array of shape (r,)
        g_i.

    Notes
    -----
    The letters m_ij, w_ij and g_i are those of ``docs/objectives.md``, and ``d_ij = w_ij - rho g_i h_j``; see
    `wals_spark.objective`. Kernels and formulas call them m, d and g.
    """

    ids: np.ndarray
    indptr: np.ndarray
    indices: np.ndarray
    target: np.ndarray
    weight: np.ndarray
    popularity: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> np.ndarray:
        """Observed cells of each row, an int64 array of shape (r,)."""
        return np.diff(self.indptr)
