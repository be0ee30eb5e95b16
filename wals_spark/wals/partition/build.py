"""From the cells that every rank has read to the two sides that it solves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np

from wals_spark.cluster.process_group import Group
from wals_spark.errors import InputError
from wals_spark.matrix.array_file import ArrayFile
from wals_spark.matrix.coo import Coo
from wals_spark.matrix.csr import sum_by
from wals_spark.objective import Marginals, Objective
from wals_spark.wals.partition.halo import Piece, cut_by_distinct, with_needs
from wals_spark.wals.partition.memory_plan import Holding
from wals_spark.wals.partition.redistribute import OwnRows, Portions, collect, collect_filed, cut_rows
from wals_spark.wals.partition.side import BlockBuilder, FiledBlocks, Needs, Side, SideBlock

CELLS_AT_ONCE = 1 << 22


def make_sides(
    group: Group,
    cells: Coo | Portions,
    shape: tuple[int, int],
    objective: Objective,
    *,
    symmetric: bool,
    unit: int,
    k: int,
    dtype: np.dtype,
    duplicates: str = "sum",
    holding: Holding = Holding(),  # noqa: B008  # frozen
) -> tuple[Side, Side]:
    """Exchange the cells that every rank has read so that each holds its rows and its columns whole.

    Parameters
    ----------
    group : Group
    cells : Coo, or a function that returns them in portions
        Any part of the matrix; the parts of all ranks together are the matrix. Portions are asked for where the
        matrix is streamed, several times.
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
    holding : Holding

    Raises
    ------
    InputError
        No cell at all, a repeated cell under "refuse", sums beyond int64, or a matrix that is said to be
        symmetric and is not.
    """

    def own_rows(side: int) -> OwnRows:
        if isinstance(cells, Coo):
            return collect(group, cells if side == 0 else cells.transposed, shape[side], k, duplicates)
        portions = cells if side == 0 else lambda: (portion.transposed for portion in cells())
        return collect_filed(group, portions, shape[side], k, duplicates, holding)

    rows = own_rows(0)
    cols = rows if symmetric else own_rows(1)
    marginals = _marginals(group, objective, rows, cols, unit, symmetric)
    if marginals.row_cells.sum() == 0:
        raise InputError("the matrix has no observed cell; the batches asked for are empty")
    row = _side(group, rows, cols, objective, marginals, unit, dtype, holding, swapped=False)
    if symmetric and objective.symmetric:
        return row, row
    return row, _side(group, cols, rows, objective, marginals, unit, dtype, holding, swapped=True)


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


def _side(
    group: Group,
    own: OwnRows,
    fixed: OwnRows,
    objective: Objective,
    marginals: Marginals,
    unit: int,
    dtype: np.dtype,
    holding: Holding,
    *,
    swapped: bool,
) -> Side:
    seen = marginals.transposed if swapped else marginals
    popularity = objective.popularity(seen.rows, seen.row_cells)
    ridge = objective.regularizers(seen.row_cells, len(seen.cols))
    offsets = np.broadcast_to(0.0, len(popularity))
    if objective.bias == "fixed" or objective.unobserved == "softplus":
        offsets = objective.offsets(seen.rows, seen.row_cells, (seen.total, int(seen.row_cells.sum())))
    pieces = _pieces(own, objective, marginals, unit, dtype, swapped=swapped)
    blocks = _blocks(group, own, fixed, pieces, BlockBuilder(own.rows, popularity), dtype, holding)
    return Side(own.owner, own.rows, popularity, ridge, seen.row_cells, offsets, blocks)


def _blocks(
    group: Group,
    own: OwnRows,
    fixed: OwnRows,
    pieces: Iterator[Piece],
    build: BlockBuilder,
    dtype: np.dtype,
    holding: Holding,
) -> Iterable[SideBlock]:
    blocks: Iterator[tuple[Piece, Needs | None]] = ((piece, None) for piece in pieces)
    if holding.sharded:
        size = len(fixed.owner)
        cut = (part for piece in pieces for part in cut_by_distinct(piece, size, holding.fetched_rows))
        blocks = iter(with_needs(group, cut, fixed.owner, dtype))
    if not holding.streamed:
        return [build(start, arrays, needs) for (start, arrays), needs in blocks]
    file = ArrayFile(holding.scratch)
    for (start, arrays), needs in blocks:
        more = [] if needs is None else [needs.ids, needs.asked, needs.counts]
        file.append([np.array([start]), *arrays, *more])
    return FiledBlocks(build, file)


def _pieces(
    own: OwnRows, objective: Objective, marginals: Marginals, unit: int, dtype: np.dtype, *, swapped: bool
) -> Iterator[Piece]:
    """The own rows with targets and extra weights in place of values."""
    g = objective.popularity(marginals.rows, marginals.row_cells)
    h = objective.popularity(marginals.cols, marginals.col_cells)
    for first, csr in own.parts:
        rows = own.rows[first : first + len(csr.lengths)]
        m, d = np.empty(csr.nnz, dtype), np.empty(csr.nnz, dtype)
        bounds = cut_rows(csr.indptr, CELLS_AT_ONCE)
        for start, stop in pairwise(bounds.tolist()):
            part = slice(csr.indptr[start], csr.indptr[stop])
            mine, other = rows[csr.row_numbers(start, stop)], csr.indices[part]
            row, col = (other, mine) if swapped else (mine, other)
            weight = None if csr.weights is None else csr.weights[part]
            m[part], d[part] = objective.cells(csr.values[part] / unit, row, col, marginals, g, h, weight)
        yield first, (csr.indptr, csr.indices, m, d)
