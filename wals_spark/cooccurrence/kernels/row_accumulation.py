"""Rows of counts from the positions of their tokens, into packed rows or into sorted cells."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from wals_spark.cooccurrence.kernels.column_set import ColumnSet, empty_column_set, mark_columns
from wals_spark.cooccurrence.kernels.intrinsics import U, loop, prefetch, trailing_zeros
from wals_spark.cooccurrence.kernels.occurrences import PREFETCH_DISTANCE
from wals_spark.cooccurrence.kernels.packed_rows import MAXIMUM_ENTRY, ROW_HEADER
from wals_spark.cooccurrence.kernels.row_finishing import DONE, OUTPUT_FULL, OVERFLOW, finish_row, take_cells
from wals_spark.cooccurrence.kernels.varint import append_varint, write_uint32


class WindowWeights(NamedTuple):
    """Units by distance, index 0 unused.

    Attributes
    ----------
    left32, right32 : uint32 arrays of shape (window_left + 1,), (window_right + 1,)
    left64, right64 : int64 arrays of the same shapes
    self_units : int
        Units that each occurrence adds to the diagonal.
    narrow_positions : int
        Rows with more positions than this may exceed 32 bits.
    drop_diagonal : bool
    """

    left32: np.ndarray
    right32: np.ndarray
    left64: np.ndarray
    right64: np.ndarray
    self_units: int
    narrow_positions: int
    drop_diagonal: bool


class Accumulators(NamedTuple):
    """A dense row.

    Attributes
    ----------
    narrow, wide : uint32 and int64 arrays of shape (V + 1,), zeros
        Sums by column for rows of few and of many positions. Index V takes what holds a place, is never 0 and so
        never touched.
    columns : ColumnSet
        Columns whose sum is not 0.
    """

    narrow: np.ndarray
    wide: np.ndarray
    columns: ColumnSet


def empty_accumulators(size: int) -> Accumulators:
    """A row of V = `size` columns."""
    return Accumulators(np.zeros(size + 1, np.uint32), np.zeros(size + 1, np.int64), empty_column_set(size))


@loop
def _accumulate(ids, low, high, positions, reach, left, right, accumulator, touched, n):
    """Add the windows of ``positions[low:high]`` to the accumulator; returns the number of touched columns."""
    span = U(len(left) - 1)
    forward = U(len(right) - 1)
    for k in range(low, high):
        ahead = U(positions[U(k + PREFETCH_DISTANCE)])
        prefetch(ids, ahead - span)
        prefetch(ids, ahead + forward)
        p = U(positions[U(k)])
        r = U(reach[U(k)])
        for d in range(U(1), (r & U(255)) + U(1)):
            c = U(ids[p - U(d)])
            a = accumulator[c]
            touched[n] = c
            n += U(a == 0)
            accumulator[c] = a + left[U(d)]
        for d in range(r >> U(16), ((r >> U(8)) & U(255)) + U(1)):
            c = U(ids[p + U(d)])
            a = accumulator[c]
            touched[n] = c
            n += U(a == 0)
            accumulator[c] = a + right[U(d)]
    return n


@loop
def _is_wide(row, occurrences, weights):
    return occurrences.start[row + U(1)] - occurrences.start[row] > weights.narrow_positions


@loop
def _accumulate_row(row, occurrences, weights, accumulators):
    """Sum a row into one of the accumulators; returns the number of touched columns."""
    ids, positions, reach = occurrences.ids, occurrences.positions, occurrences.reach
    narrow, wide, touched = accumulators.narrow, accumulators.wide, accumulators.columns.touched
    low, high = occurrences.start[row], occurrences.start[row + U(1)]
    is_wide = _is_wide(row, occurrences, weights)
    n = U(0)
    if low == high:
        return n
    size = U(len(narrow) - 1)
    narrow[size] = 1
    wide[size] = 1
    if weights.self_units > 0 and occurrences.owners[row] > 0:
        touched[0] = row
        n = U(1)
        if is_wide:
            wide[row] = occurrences.owners[row] * weights.self_units
        else:
            narrow[row] = occurrences.owners[row] * weights.self_units
    if is_wide:
        return _accumulate(ids, low, high, positions, reach, weights.left64, weights.right64, wide, touched, n)
    return _accumulate(ids, low, high, positions, reach, weights.left32, weights.right32, narrow, touched, n)


@loop
def _next_row(rows, index, pending, occurrences, weights, accumulators):
    """Go on to the next row that is not empty, and accumulate it: (its index, its touched columns).

    `pending` > 0: that row is in the accumulators already.
    """
    n = U(pending)
    while n == U(0) and index < len(rows):
        n = _accumulate_row(U(rows[index]), occurrences, weights, accumulators)
        if n == U(0):
            index += 1
    return index, n


@loop
def _pack_columns(columns, skip, accumulator, buffer, at):
    """Append (column difference, units) of all marked columns in order, and clear their sums: (place, entries)."""
    previous = U(0)
    entries = U(0)
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
                    at = append_varint(buffer, at, c - previous)
                    at = append_varint(buffer, at, accumulator[c])
                    previous = c
                    entries += U(1)
                accumulator[c] = 0
    return at, entries


@loop
def count_packed_rows(rows, index, pending, occurrences, weights, accumulators, buffer):
    """Count rows ``rows[index:]`` and pack them until the buffer is full.

    Parameters
    ----------
    rows : uint32 array
        Token ids, ascending.
    index, pending : int
        Where to go on; `pending` columns of row ``rows[index]`` are in the accumulators already.
    occurrences : Occurrences
    weights : WindowWeights
    accumulators : Accumulators
    buffer : uint8 array

    Returns
    -------
    (int, int, int, int, int)
        Next index, pending, bytes used, rows packed, entries packed. `pending` > 0: the buffer has no room for the
        next row, which needs ``MAXIMUM_ENTRY pending + ROW_HEADER`` bytes.
    """
    none = U(len(accumulators.narrow))
    at = U(0)
    packed = 0
    total = 0
    previous = U(0)
    room = U(len(buffer))
    index, n = _next_row(rows, index, pending, occurrences, weights, accumulators)
    while n > U(0):
        if at + n * U(MAXIMUM_ENTRY) + U(ROW_HEADER) > room:
            return index, n, at, packed, total
        row = U(rows[index])
        skip = row if weights.drop_diagonal else none
        mark_columns(accumulators.columns, n)
        length_at = append_varint(buffer, at, row - previous)
        payload = length_at + U(4)
        if _is_wide(row, occurrences, weights):
            end, entries = _pack_columns(accumulators.columns, skip, accumulators.wide, buffer, payload)
        else:
            end, entries = _pack_columns(accumulators.columns, skip, accumulators.narrow, buffer, payload)
        if entries > U(0):
            write_uint32(buffer, length_at, end - payload)
            at = end
            previous = row
            packed += 1
            total += entries
        index, n = _next_row(rows, index + 1, 0, occurrences, weights, accumulators)
    return index, n, at, packed, total


@loop
def count_cells(rows, index, pending, occurrences, weights, accumulators, rules, cells, sums):
    """Count rows ``rows[index:]`` into sorted cells until the output is full.

    For when all tokens are here, so that a row is complete.

    Parameters
    ----------
    rows : uint32 array
        Token ids, ascending.
    index, pending : int
        Where to go on; `pending` columns of row ``rows[index]`` are in the accumulators already.
    occurrences : Occurrences
    weights : WindowWeights
    accumulators : Accumulators
    rules : FinishingRules
    cells : CellColumns
        Room for V + 1 cells or more; receives the cells.
    sums : BlockSums

    Returns
    -------
    (int, int, int, int)
        Next index, pending, cells written, and `DONE`, `OUTPUT_FULL` or `OVERFLOW`.
    """
    none = U(len(accumulators.narrow))
    written = U(0)
    room = U(len(cells.rows))
    index, n = _next_row(rows, index, pending, occurrences, weights, accumulators)
    while n > U(0):
        if written + n > room:
            return index, n, written, OUTPUT_FULL
        row = U(rows[index])
        skip = row if weights.drop_diagonal else none
        mark_columns(accumulators.columns, n)
        first = written
        if _is_wide(row, occurrences, weights):
            written = take_cells(accumulators.columns, skip, accumulators.wide, cells, written)
        else:
            written = take_cells(accumulators.columns, skip, accumulators.narrow, cells, written)
        kept = finish_row(row, first, written, rules, cells, sums)
        if kept < 0:
            return index, U(0), written, OVERFLOW
        written = U(kept)
        index, n = _next_row(rows, index + 1, 0, occurrences, weights, accumulators)
    return index, n, written, DONE
