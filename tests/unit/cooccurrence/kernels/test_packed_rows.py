"""Sorted cells in bytes, as `PackedRows` says."""

from __future__ import annotations

import numpy as np

from wals_spark.cooccurrence.kernels.packed_rows import (
    MAXIMUM_ENTRY,
    ROW_HEADER,
    empty_row_index,
    index_rows,
    pack_rows,
)

ROWS = np.array([2, 2, 5], np.int32)
COLS = np.array([1, 4, 0], np.int32)
UNITS = np.array([7, 200, 3], np.int64)


def test_bytes_by_hand():
    buffer = np.zeros(100, np.uint8)
    index, used, packed = pack_rows(ROWS, COLS, UNITS, 0, buffer)
    assert (index, packed) == (3, 2)
    first = [2, 5, 0, 0, 0, 1, 7, 3, 0xC8, 1]
    second = [3, 2, 0, 0, 0, 0, 3]
    assert buffer[: int(used)].tolist() == first + second


def test_a_row_that_has_no_room_stays():
    rows = np.array([2, 5, 5, 5], np.int32)
    room = MAXIMUM_ENTRY + ROW_HEADER
    index, used, packed = pack_rows(rows, rows, rows.astype(np.int64), 0, np.zeros(room, np.uint8))
    assert (index, packed) == (1, 1)
    assert used <= room


def test_the_index_names_rows_and_payloads():
    buffer = np.zeros(100, np.uint8)
    _, used, _ = pack_rows(ROWS, COLS, UNITS, 0, buffer)
    found = empty_row_index(2)
    assert index_rows(buffer, 0, int(used), found, 0) == 2
    assert found.rows.tolist() == [2, 5]
    assert found.starts.tolist() == [5, 15]
    assert found.lengths.tolist() == [5, 2]
