"""Numbers in bytes and back."""

from __future__ import annotations

import numpy as np
import pytest

from wals_spark.cooccurrence.kernels.varint import append_varint, read_uint32, read_varint, write_uint32


@pytest.mark.parametrize(
    ("number", "written"),
    [(0, [0]), (127, [127]), (128, [0x80, 1]), (300, [0xAC, 2]), (2**64 - 1, [0xFF] * 9 + [1])],
)
def test_bytes_of_a_number(number, written):
    buffer = np.zeros(12, np.uint8)
    end = append_varint(buffer, np.uint64(1), np.uint64(number))
    assert buffer[1 : int(end)].tolist() == written
    assert read_varint(buffer, np.uint64(1)) == (number, end)


def test_four_bytes_low_first():
    buffer = np.zeros(4, np.uint8)
    write_uint32(buffer, np.uint64(0), np.uint64(0x01020304))
    assert buffer.tolist() == [4, 3, 2, 1]
    assert read_uint32(buffer, np.uint64(0)) == 0x01020304
