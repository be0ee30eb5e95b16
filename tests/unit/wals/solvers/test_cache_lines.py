"""Rows of factors in whole cache lines."""

from __future__ import annotations

import numpy as np
import pytest

from wals_spark.wals.solvers.cache_lines import LINE_BYTES, aligned_zeros, pad_rows


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("width", [1, 16, 21])
@pytest.mark.parametrize("count", [1, 3])
def test_rows_are_padded_to_whole_lines(dtype: str, width: int, count: int) -> None:
    x = np.arange(count * width, dtype=dtype).reshape(count, width)
    lines = pad_rows(x)
    assert lines.ctypes.data % LINE_BYTES == 0
    assert lines.shape[1] * lines.itemsize % LINE_BYTES == 0
    assert np.array_equal(lines[:, :width], x)
    assert not lines[:, width:].any()


def test_rows_that_lie_in_lines_are_not_copied() -> None:
    lines = aligned_zeros(3, 16, np.dtype(np.float32))
    assert pad_rows(lines) is lines
    assert aligned_zeros(3, 15, np.dtype(np.float32)).shape == (3, 15)
    assert pad_rows(lines[:, :8]) is not lines
