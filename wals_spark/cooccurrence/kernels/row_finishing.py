"""The last step of a row whose sums are complete: half self pairs, pruning, marginals."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from wals_spark.cooccurrence.kernels.intrinsics import U, loop, trailing_zeros

DONE, OUTPUT_FULL, OVERFLOW = 0, 1, 2
"""Why a kernel that writes cells returned."""


class FinishingRules(NamedTuple):
    """What becomes of complete sums.

    Attributes
    ----------
    halve_diagonal : bool
        Count self pairs from one end only.
    minimum : int
        Cells with fewer units are dropped and added to ``BlockSums.pruned``.
    limit : int
        A sum above it is an overflow.
    """

    halve_diagonal: bool
    minimum: int
    limit: int


class CellColumns(NamedTuple):
    """Room for sorted cells: int32, int32 and int64 arrays of one length."""

    rows: np.ndarray
    cols: np.ndarray
    units: np.ndarray


class BlockSums(NamedTuple):
    """Sums over the rows of a block.

    Attributes
    ----------
    row_units, col_units : int64 arrays of shape (V,)
        Sums of what is kept; `col_units` may be of shape (0,).
    pruned : int64 array of shape (2,)
        Cells and units dropped; the units saturate at the limit.
    """

    row_units: np.ndarray
    col_units: np.ndarray
    pruned: np.ndarray


def empty_cell_columns(size: int) -> CellColumns:
    """Uninitialised arrays for `size` cells."""
    return CellColumns(np.empty(size, np.int32), np.empty(size, np.int32), np.empty(size, np.int64))


@loop
def take_cells(columns, skip, accumulator, cells, written):
    """Move the sums of the marked columns, in order, from the accumulator to the cells, without one column.

    Parameters
    ----------
    columns : ColumnSet
        Its bitmap is zeros afterwards.
    skip : int
        Column to leave out; V or more = none.
    accumulator : uint32 or int64 array of shape (V + 1,)
        Zeros afterwards.
    cells : CellColumns
        Columns and units are written.
    written : int

    Returns
    -------
    int
        The new number of cells.
    """
    words, summary = columns.words, columns.summary
    for s in range(len(summary)):
        m = summary[U(s)]
        if m == U(0):
            continue
        summary[U(s)] = U(0)
        while m != U(0):
            w = (U(s) << U(6)) + U(trailing_zeros(m))
            m &= m - U(1)
            x = words[w]
            words[w] = U(0)
            while x != U(0):
                c = (w << U(6)) + U(trailing_zeros(x))
                x &= x - U(1)
                if c != skip:
                    cells.cols[written] = c
                    cells.units[written] = accumulator[c]
                    written += U(1)
                accumulator[c] = 0
    return written


@loop
def finish_row(row, first, written, rules, cells, sums):
    """Halve the self pair, prune, and add to the marginals.

    Parameters
    ----------
    row : int
    first, written : int
        The row is the cells ``first .. written - 1``.
    rules : FinishingRules
    cells : CellColumns
    sums : BlockSums

    Returns
    -------
    int
        The new number of cells, or -1 for an overflow.
    """
    limit = rules.limit
    pruned, col_units = sums.pruned, sums.col_units
    out_rows, out_cols, out_units = cells
    kept = first
    total = np.int64(0)
    for k in range(first, written):
        units = out_units[U(k)]
        c = U(out_cols[U(k)])
        if rules.halve_diagonal and c == U(row):
            units //= 2
        if units < rules.minimum:
            pruned[0] += 1
            pruned[1] = pruned[1] + units if pruned[1] <= limit - units else limit
            continue
        if units > limit - total:
            return np.int64(-1)
        total += units
        if len(col_units) > 0:
            if col_units[c] > limit - units:
                return np.int64(-1)
            col_units[c] += units
        out_rows[kept] = row
        out_cols[kept] = c
        out_units[kept] = units
        kept += U(1)
    sums.row_units[U(row)] = total
    return np.int64(kept)
