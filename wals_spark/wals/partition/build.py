"""From the cells that every rank has read to the two sides that it solves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from wals_spark.cluster.process_group import Group
from wals_spark.errors import InputError
from wals_spark.matrix.array_file import ArrayFile
from wals_spark.matrix.coo import Coo
from wals_spark.matrix.csr import sum_by
from wals_spark.objective import Marginals, Objective
from wals_spark.wals.partition.blocking import BlockCells, cut_by_cells, cut_by_columns
from wals_spark.wals.partition.halo import Halo, build_halos
from wals_spark.wals.partition.memory_plan import MemoryPlan
from wals_spark.wals.partition.redistribute import CooBatches, OwnRows, redistribute, redistribute_streamed
from wals_spark.wals.partition.side import BlockBuilder, Side, SideBlock, StoredBlocks

BATCH_CELLS = 1 << 22
"""Cells whose targets and weights are computed at a time."""


def build_sides(
    group: Group,
    cells: Coo | CooBatches,
    shape: tuple[int, int],
    objective: Objective,
    *,
    symmetric: bool,
    unit: int,
    k: int,
    dtype: np.dtype,
    duplicates: str = "sum",
    plan: MemoryPlan = MemoryPlan(),  # noqa: B008  # frozen
) -> tuple[Side, Side]:
    """Redistribute the cells that every rank has read, so that each has its rows and its columns whole.

    Parameters
    ----------
    group : Group
    cells : Coo or callable
        Any part of the matrix, or what reads it in batches (`CooBatches`), several times: then the matrix is streamed.
        The parts of all ranks together are the matrix.
    shape : (int, int)
        m and n.
    objective : Objective
    symmetric : bool
        The matrix equals its transpose: one layout serves both sides.
    unit : int
        Values are divided by it.
    k : int
        Decides the balance between long and short rows.
    dtype : numpy.dtype
        float32 or float64, of targets and weights.
    duplicates : {"sum", "refuse", "keep"}
    plan : MemoryPlan

    Returns
    -------
    row, col : Side
        The same object twice where one layout serves both.

    Raises
    ------
    InputError
        No cell at all, a repeated cell under "refuse", sums beyond int64, or a matrix that is said to be
        symmetric and is not.
    """

    def own_rows(side: int) -> OwnRows:
        if isinstance(cells, Coo):
            return redistribute(group, cells if side == 0 else cells.transposed, shape[side], k, duplicates)
        batches = cells if side == 0 else lambda: (batch.transposed for batch in cells())
        return redistribute_streamed(group, batches, shape[side], k, duplicates, plan)

    rows = own_rows(0)
    cols = rows if symmetric else own_rows(1)
    marginals = _marginals(group, objective, rows, cols, unit, symmetric)
    if marginals.row_cells.sum() == 0:
        raise InputError("the matrix has no observed cell; the batches asked for are empty")
    builder = _SideBuilder(group, objective, marginals, unit, dtype, plan)
    row = builder.side(rows, cols, transposed=False)
    if symmetric and objective.symmetric:
        return row, row
    return row, builder.side(cols, rows, transposed=True)


def _marginals(
    group: Group, objective: Objective, rows: OwnRows, cols: OwnRows, unit: int, symmetric: bool
) -> Marginals:
    row_sums, row_cells = _sums(group, objective, rows)
    if symmetric:
        parts = [sum_by(csr.indices, csr.values, len(rows.owner)) for _, csr in rows.parts]
        seen = group.all_reduce(np.sum(parts, axis=0))
        if not np.array_equal(seen, row_sums) and not np.allclose(seen, row_sums, rtol=1e-9, atol=0):
            worst = int(np.argmax(np.abs(seen - row_sums)))
            raise InputError(
                f"the matrix is said to be symmetric, but row {worst} sums to {row_sums[worst]} and column {worst} to "
                f"{seen[worst]}; the co-occurrence stage must run again"
            )
        col_sums, col_cells = row_sums, row_cells
    else:
        col_sums, col_cells = _sums(group, objective, cols)
    return Marginals(row_sums / unit, col_sums / unit, row_cells, col_cells)


def _sums(group: Group, objective: Objective, own: OwnRows) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the values, of the weights where cells have them, and numbers of cells, of all rows."""
    counted = np.zeros(len(own.owner), np.int64)
    parts = []
    for first, csr in own.parts:
        summed = csr.values if csr.weights is None else csr.weights
        numbers = np.repeat(np.arange(len(csr.lengths), dtype=np.int32), csr.lengths)
        parts.append(sum_by(numbers, summed, len(csr.lengths)))
        which = objective.counted(csr.values)
        ids = own.rows[first : first + len(csr.lengths)]
        counted[ids] = csr.lengths if which.all() else np.bincount(numbers[which], minlength=len(ids))
    sums = np.zeros(len(own.owner), parts[0].dtype)
    sums[own.rows] = np.concatenate(parts)
    return group.all_reduce(sums), group.all_reduce(counted)


@dataclass(frozen=True)
class _SideBuilder:
    """What both sides are made from."""

    group: Group
    objective: Objective
    marginals: Marginals
    unit: int
    dtype: np.dtype
    plan: MemoryPlan

    def side(self, own: OwnRows, fixed: OwnRows, *, transposed: bool) -> Side:
        """The side of the rows `own`; of the columns of the matrix where `transposed`."""
        objective = self.objective
        seen = self.marginals.transposed if transposed else self.marginals
        popularity = objective.popularity(seen.rows, seen.row_cells)
        ridge = objective.regularizers(seen.row_cells, len(seen.cols))
        offsets = np.broadcast_to(0.0, len(popularity))
        if objective.bias == "fixed" or objective.unobserved == "softplus":
            offsets = objective.offsets(seen.rows, seen.row_cells, (seen.total, int(seen.row_cells.sum())))
        cells = self._weighted(own, transposed=transposed)
        blocks = self._blocks(cells, fixed, BlockBuilder(own.rows, popularity))
        return Side(own.owner, own.rows, popularity, ridge, seen.row_cells, seen.rows, offsets, blocks)

    def _blocks(self, cells: Iterator[BlockCells], fixed: OwnRows, build: BlockBuilder) -> Iterable[SideBlock]:
        blocks: Iterator[tuple[BlockCells, Halo | None]] = ((block, None) for block in cells)
        if self.plan.sharded:
            size = len(fixed.owner)
            cut = (part for block in cells for part in cut_by_columns(block, size, self.plan.fetched_rows))
            blocks = iter(build_halos(self.group, cut, fixed.owner, self.dtype))
        if not self.plan.streamed:
            return [build(block, halo) for block, halo in blocks]
        stored = StoredBlocks(build, ArrayFile(self.plan.scratch))
        for block, halo in blocks:
            stored.append(block, halo)
        return stored

    def _weighted(self, own: OwnRows, *, transposed: bool) -> Iterator[BlockCells]:
        """The own rows with targets and extra weights in place of values."""
        marginals = self.marginals
        g = self.objective.popularity(marginals.rows, marginals.row_cells)
        h = self.objective.popularity(marginals.cols, marginals.col_cells)
        for first, csr in own.parts:
            rows = own.rows[first : first + len(csr.lengths)]
            m, d = np.empty(csr.nnz, self.dtype), np.empty(csr.nnz, self.dtype)
            bounds = cut_by_cells(csr.indptr, BATCH_CELLS)
            for start, stop in pairwise(bounds.tolist()):
                part = slice(csr.indptr[start], csr.indptr[stop])
                mine, other = rows[csr.row_numbers(start, stop)], csr.indices[part]
                row, col = (other, mine) if transposed else (mine, other)
                weight = None if csr.weights is None else csr.weights[part]
                m[part], d[part] = self.objective.cells(csr.values[part] / self.unit, row, col, marginals, g, h, weight)
            yield BlockCells(first, csr.indptr, csr.indices, m, d)
