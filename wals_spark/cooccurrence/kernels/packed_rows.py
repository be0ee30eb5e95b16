"""Packed rows: sorted rows of counts in bytes, see `wals_spark.cooccurrence.window.PackedRows` for the format."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from wals_spark.cooccurrence.kernels.intrinsics import U, loop
from wals_spark.cooccurrence.kernels.varint import append_varint, read_uint32, read_varint, write_uint32

MAXIMUM_ENTRY = 15
"""Bytes of a column difference (5) and a count (10) at most."""
ROW_HEADER = 14
"""Bytes of a packed row's header at most: row difference (5), entries (5), payload bytes (4)."""


class RowIndex(NamedTuple):
    """Where the packed rows of a buffer are.

    Attributes
    ----------
    rows : uint32 array of shape (n,)
        Ids.
    starts : uint64 array of shape (n,)
        Where the payload of each begins.
    lengths : uint32 array of shape (n,)
        Bytes of the payloads.
    """

    rows: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray


def empty_row_index(size: int) -> RowIndex:
    """An uninitialised index for `size` rows."""
    return RowIndex(np.empty(size, np.uint32), np.empty(size, np.uint64), np.empty(size, np.uint32))


@loop
def index_rows(buffer, low, high, index, n):
    """List the packed rows in ``buffer[low:high]``.

    Parameters
    ----------
    buffer : uint8 array
    low, high : int
    index : RowIndex
        Written from entry n on.
    n : int
        Rows listed before.

    Returns
    -------
    int
        Rows listed now.
    """
    at = U(low)
    previous = U(0)
    while at < U(high):
        difference, at = read_varint(buffer, at)
        row = previous + difference
        length = read_uint32(buffer, at)
        at += U(4)
        index.rows[n] = row
        index.starts[n] = at
        index.lengths[n] = length
        n += 1
        previous = row
        at += length
    return n


@loop
def pack_rows(rows, cols, units, index, buffer):
    """Pack sorted cells from `index` on, whole rows only, until the buffer is full.

    Parameters
    ----------
    rows, cols, units : int32, int32 and int64 arrays of shape (cells,)
    index : int
    buffer : uint8 array

    Returns
    -------
    (int, int, int)
        Next index, bytes used, rows packed.
    """
    at = U(0)
    packed = 0
    previous = U(0)
    room = U(len(buffer))
    n = len(rows)
    while index < n:
        row = rows[index]
        stop = index
        while stop < n and rows[stop] == row:
            stop += 1
        if at + U(stop - index) * U(MAXIMUM_ENTRY) + U(ROW_HEADER) > room:
            return index, at, packed
        at = append_varint(buffer, at, U(row) - previous)
        length_at = at
        at += U(4)
        payload = at
        c = U(0)
        for k in range(index, stop):
            at = append_varint(buffer, at, U(cols[k]) - c)
            at = append_varint(buffer, at, U(units[k]))
            c = U(cols[k])
        write_uint32(buffer, length_at, at - payload)
        previous = U(row)
        packed += 1
        index = stop
    return index, at, packed
