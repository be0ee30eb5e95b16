"""The product in registers against NumPy."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("count", "lines"), [(0, 1), (1, 1), (37, 2), (50, 5)])
def test_the_upper_triangle_is_the_product(dtype: str, count: int, lines: int) -> None:
    from wals_spark.wals.microkernel import LINE_BYTES, rank_update

    width = lines * LINE_BYTES // np.dtype(dtype).itemsize
    rng = np.random.default_rng(0)
    gathered = rng.standard_normal((60, width)).astype(dtype)
    target = rng.standard_normal((width, width)).astype(dtype)
    z = gathered[4 : 4 + count].astype(np.float64)
    expected = target - z.T @ z
    rank_update(gathered, 4, count, target, np.dtype(dtype).type(-1))
    assert np.abs(np.triu(target - expected)).max() < (1e-12 if dtype == "float64" else 1e-4)


def test_no_row_is_written_beyond_the_array() -> None:
    from wals_spark.wals.microkernel import rank_update

    guard = np.full((18, 16), 7.0, np.float32)
    target = guard[1:17]
    before = target.copy()
    gathered = np.ones((3, 16), np.float32)
    rank_update(gathered, 0, 3, target, np.float32(1))
    assert (guard[0] == 7).all()
    assert (guard[17] == 7).all()
    assert np.array_equal(np.triu(target), np.triu(before + 3))
