"""The sum of packed rows with equal ids."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np

from wals_spark.cooccurrence.kernels.column_set import mark_columns
from wals_spark.cooccurrence.kernels.intrinsics import U, loop
from wals_spark.cooccurrence.kernels.row_finishing import DONE, OUTPUT_FULL, OVERFLOW, finish_row, take_cells
from wals_spark.cooccurrence.kernels.varint import read_varint


@loop
def _unpack_row(buffer, at, end, cells, written):
    """Append the columns and units of a packed row to the cells; returns their new number."""
    c = U(0)
    while at < end:
        difference, at = read_varint(buffer, at)
        units, at = read_varint(buffer, at)
        c += difference
        cells.cols[written] = c
        cells.units[written] = units
        written += U(1)
    return written


@loop
def _add_row(buffer, at, end, limit, accumulator, touched, n):
    """Add a packed row to the accumulator: (touched columns, whether all sums are within the limit)."""
    c = U(0)
    while at < end:
        difference, at = read_varint(buffer, at)
        units, at = read_varint(buffer, at)
        c += difference
        a = accumulator[c]
        if a > limit - np.int64(units):
            return n, False
        touched[n] = c
        n += U(a == 0)
        accumulator[c] = a + np.int64(units)
    return n, True


@loop
def merge_rows(order, index, packed, buffer, rules, accumulator, columns, cells, sums):
    """Sum packed rows with equal ids and unpack them in order until the output is full.

    Parameters
    ----------
    order : int64 array
        Indices of the packed rows by row id.
    index : int
        Where to go on in `order`.
    packed : RowIndex
        Of `index_rows`.
    buffer : uint8 array
    rules : FinishingRules
    accumulator : int64 array of shape (V + 1,), zeros
    columns : ColumnSet
    cells : CellColumns
        Room for V + 1 cells or more; receives the cells.
    sums : BlockSums

    Returns
    -------
    (int, int, int)
        Next index, cells written, and `DONE`, `OUTPUT_FULL` or `OVERFLOW`.
    """
    rows, starts, lengths = packed
    touched = columns.touched
    written = U(0)
    room = U(len(cells.rows))
    while index < len(order):
        row = rows[order[index]]
        stop = index + 1
        while stop < len(order) and rows[order[stop]] == row:
            stop += 1
        bound = U(0)
        for q in range(index, stop):
            bound += U(lengths[order[q]]) >> U(1)
        bound = min(bound, U(len(accumulator)))
        if written + bound > room:
            return index, written, OUTPUT_FULL
        first = written
        if stop == index + 1:
            at = U(starts[order[index]])
            written = _unpack_row(buffer, at, at + U(lengths[order[index]]), cells, written)
        else:
            n = U(0)
            for q in range(index, stop):
                at = U(starts[order[q]])
                end = at + U(lengths[order[q]])
                n, within = _add_row(buffer, at, end, rules.limit, accumulator, touched, n)
                if not within:
                    return index, written, OVERFLOW
            mark_columns(columns, n)
            written = take_cells(columns, U(len(accumulator)), accumulator, cells, written)
        kept = finish_row(row, first, written, rules, cells, sums)
        if kept < 0:
            return index, written, OVERFLOW
        written = U(kept)
        index = stop
    return index, written, DONE
