"""Consecutive rows cut into blocks: by the cells that they have, or by the distinct columns that they name."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np


class BlockCells(NamedTuple):
    """The cells of some consecutive own rows, in compressed sparse rows.

    Attributes
    ----------
    start : int
        Position of the first row among the own rows.
    indptr : int64 array of shape (r + 1,)
    indices : int32 array of shape (nnz,)
    target, weight : arrays of shape (nnz,)
        m_ij and d_ij, see `wals_spark.wals.solvers.row_block.RowBlock`.
    """

    start: int
    indptr: np.ndarray
    indices: np.ndarray
    target: np.ndarray
    weight: np.ndarray

    @classmethod
    def empty(cls, dtype: np.dtype) -> BlockCells:
        """No row, with targets and weights of a dtype."""
        nothing = np.zeros(0, dtype)
        return cls(0, np.zeros(1, np.int64), np.zeros(0, np.int32), nothing, nothing)


def cut_by_cells(indptr: np.ndarray, cells: int) -> np.ndarray:
    """First rows of blocks that have at most `cells` cells or are one row; the last entry is the number of rows.

    Parameters
    ----------
    indptr : int64 array of shape (rows + 1,)
    cells : int
    """
    bounds = [0]
    rows = len(indptr) - 1
    while bounds[-1] < rows or len(bounds) == 1:
        stop = int(np.searchsorted(indptr, indptr[bounds[-1]] + cells, side="right")) - 1
        bounds.append(min(rows, max(stop, bounds[-1] + 1)))
    return np.array(bounds)


def cut_by_columns(block: BlockCells, size: int, columns: int) -> Iterator[BlockCells]:
    """Cut a block so that each part names at most `columns` distinct columns of `size`, or is one row."""
    from wals_spark.matrix.kernels import distinct_bounds

    start, indptr, indices, target, weight = block
    bounds = distinct_bounds(indptr, indices, np.full(size, -1, np.int32), columns)
    for first, last in pairwise(bounds.tolist()):
        cells = slice(int(indptr[first]), int(indptr[last]))
        own = indptr[first : last + 1] - indptr[first]
        yield BlockCells(start + first, own, indices[cells], target[cells], weight[cells])
