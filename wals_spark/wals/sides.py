"""The two sides of the matrix as a rank holds them: its own rows and its own columns, ready to be solved."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from wals_spark.cluster.group import Group
from wals_spark.errors import InputError
from wals_spark.matrix.cells import Cells
from wals_spark.matrix.csr import Csr, build_csr, sum_by
from wals_spark.matrix.placement import assign_rows
from wals_spark.objective import Marginals, Objective

logger = logging.getLogger(__name__)

SIDES = ("row", "col")
CELLS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Side:
    """The part of one side that a rank solves. "Rows" are the columns of the matrix on the side "col".

    Attributes
    ----------
    owner : int32 array of shape (size,)
        The rank that solves each row.
    rows : int64 array of shape (r,)
        Ids of the own rows, rising.
    indptr, indices : int64 (r + 1,) and int32 (nnz,) arrays
        Observed cells of the own rows.
    m, d : arrays of shape (nnz,)
        Targets and extra weights, see `wals_spark.objective`.
    g : float64 array of shape (r,)
        Popularity of the own rows.
    weights : float64 array of shape (size,)
        Popularity of all rows of this side: what the other side sees as h.
    ridge : float64 array of shape (size,)
        lambda_i of all rows.
    cells : int64 array of shape (size,)
        Observed cells of all rows.
    """

    owner: np.ndarray
    rows: np.ndarray
    indptr: np.ndarray
    indices: np.ndarray
    m: np.ndarray
    d: np.ndarray
    g: np.ndarray
    weights: np.ndarray
    ridge: np.ndarray
    cells: np.ndarray

    @property
    def size(self) -> int:
        """Rows of all ranks."""
        return len(self.owner)

    @property
    def nnz(self) -> int:
        """Own observed cells."""
        return len(self.indices)

    @property
    def memory(self) -> int:
        """Bytes of its arrays."""
        return sum(getattr(self, name).nbytes for name in self.__dataclass_fields__)


def make_sides(
    group: Group,
    cells: Cells,
    shape: tuple[int, int],
    objective: Objective,
    *,
    symmetric: bool,
    unit: int,
    k: int,
    dtype: np.dtype,
    duplicates: str = "sum",
) -> tuple[Side, Side]:
    """Exchange the cells that every rank has read so that each holds its rows and its columns whole.

    Parameters
    ----------
    group : Group
    cells : Cells
        Any part of the matrix; the parts of all ranks together are the matrix.
    shape : (m, n)
    objective : Objective
    symmetric : bool
        The matrix equals its transpose: one layout serves both sides.
    unit : int
        Values are divided by it.
    k : int
        Decides the balance between long and short rows.
    dtype : float32 or float64
        Of targets and weights.
    duplicates : {"sum", "refuse", "keep"}

    Raises
    ------
    InputError
        No cell at all, a repeated cell under "refuse", sums beyond int64, or a matrix that is said to be
        symmetric and is not.
    """
    row_owner, row_csr = _collect(group, cells, shape[0], k, duplicates)
    if symmetric:
        col_owner, col_csr = row_owner, row_csr
    else:
        col_owner, col_csr = _collect(group, cells.transposed, shape[1], k, duplicates)
    marginals = _marginals(group, objective, row_owner, row_csr, col_owner, col_csr, unit, symmetric)
    if marginals.row_cells.sum() == 0:
        raise InputError("the matrix has no observed cell; the batches asked for are empty")
    row = _side(group.rank, row_owner, row_csr, objective, marginals, unit, dtype, swapped=False)
    if symmetric and objective.symmetric:
        return row, row
    return row, _side(group.rank, col_owner, col_csr, objective, marginals, unit, dtype, swapped=True)


def _collect(group: Group, cells: Cells, size: int, k: int, duplicates: str) -> tuple[np.ndarray, Csr]:
    """Owners of all rows, and the own rows with all their cells."""
    counts = group.sum(np.bincount(cells.rows, minlength=size).astype(np.int64))
    owner = assign_rows(counts, k, group.size)
    if group.size > 1:
        destination = owner[cells.rows].astype(np.int16)
        order = np.argsort(destination, kind="stable")
        bounds = np.searchsorted(destination[order], np.arange(1, group.size))
        columns = [
            np.concatenate(group.exchange(np.split(column[order], bounds)))
            for column in (cells.rows, cells.cols, cells.values)
        ]
        cells = Cells(*columns)
    rows = np.flatnonzero(owner == group.rank)
    number = np.full(size, -1, np.int32)
    number[rows] = np.arange(len(rows), dtype=np.int32)
    return owner, build_csr(number[cells.rows], cells.cols, cells.values, len(rows), duplicates=duplicates)


def _marginals(
    group: Group,
    objective: Objective,
    row_owner: np.ndarray,
    row_csr: Csr,
    col_owner: np.ndarray,
    col_csr: Csr,
    unit: int,
    symmetric: bool,
) -> Marginals:
    row_sums, row_cells = _sums(group, objective, row_owner, row_csr)
    if symmetric:
        seen = group.sum(sum_by(row_csr.indices, row_csr.values, len(row_owner)))
        if not np.array_equal(seen, row_sums) and not np.allclose(seen, row_sums, rtol=1e-9, atol=0):
            worst = int(np.argmax(np.abs(seen - row_sums)))
            raise InputError(
                f"the matrix is said to be symmetric, but row {worst} sums to {row_sums[worst]} and column {worst} to "
                f"{seen[worst]}; the co-occurrence stage must run again"
            )
        col_sums, col_cells = row_sums, row_cells
    else:
        col_sums, col_cells = _sums(group, objective, col_owner, col_csr)
    return Marginals(row_sums / unit, col_sums / unit, row_cells, col_cells)


def _sums(group: Group, objective: Objective, owner: np.ndarray, csr: Csr) -> tuple[np.ndarray, np.ndarray]:
    rows = np.flatnonzero(owner == group.rank)
    sums = np.zeros(len(owner), csr.values.dtype)
    numbers = np.repeat(np.arange(len(rows), dtype=np.int32), csr.lengths)
    sums[rows] = sum_by(numbers, csr.values, len(rows))
    counted = np.zeros(len(owner), np.int64)
    which = objective.counted(csr.values)
    counted[rows] = csr.lengths if which.all() else np.bincount(numbers[which], minlength=len(rows))
    return group.sum(sums), group.sum(counted)


def _side(
    rank: int,
    owner: np.ndarray,
    csr: Csr,
    objective: Objective,
    marginals: Marginals,
    unit: int,
    dtype: np.dtype,
    *,
    swapped: bool,
) -> Side:
    rows = np.flatnonzero(owner == rank)
    g = objective.popularity(marginals.rows, marginals.row_cells)
    h = objective.popularity(marginals.cols, marginals.col_cells)
    m, d = np.empty(csr.nnz, dtype), np.empty(csr.nnz, dtype)
    for start, stop in _chunks(csr.indptr, CELLS_AT_ONCE):
        part = slice(csr.indptr[start], csr.indptr[stop])
        own, other = rows[csr.row_numbers(start, stop)], csr.indices[part]
        row, col = (other, own) if swapped else (own, other)
        m[part], d[part] = objective.cells(csr.values[part] / unit, row, col, marginals, g, h)
    mine, counts = (h, marginals.col_cells) if swapped else (g, marginals.row_cells)
    others = len(marginals.rows) if swapped else len(marginals.cols)
    ridge = objective.regularizers(counts, others)
    return Side(owner, rows, csr.indptr, csr.indices, m, d, mine[rows], mine, ridge, counts)


def _chunks(indptr: np.ndarray, cells: int) -> Sequence[tuple[int, int]]:
    """Ranges of whole rows with about so many cells, at least one row each."""
    bounds = [0]
    rows = len(indptr) - 1
    while bounds[-1] < rows:
        stop = int(np.searchsorted(indptr, indptr[bounds[-1]] + cells, side="right")) - 1
        bounds.append(min(rows, max(stop, bounds[-1] + 1)))
    return list(pairwise(bounds))
