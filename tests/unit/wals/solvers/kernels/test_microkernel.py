"""Instructions on registers against NumPy."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_square_is_transposed_and_scaled(dtype: str) -> None:
    from numba import njit

    from wals_spark.wals.solvers.cache_lines import LINE_BYTES
    from wals_spark.wals.solvers.kernels.microkernel import REGISTER_BYTES, transpose_square

    size = np.dtype(dtype).itemsize
    side, lanes = REGISTER_BYTES // size, LINE_BYTES // size

    @njit
    def turn(source, columns, rows, target):  # type: ignore[no-untyped-def]
        transpose_square(
            source.ctypes.data, source.strides[0], columns.ctypes.data, rows.ctypes.data, target.ctypes.data,
            source.dtype.type(1),
        )  # fmt: skip

    rng = np.random.default_rng(0)
    source, target = rng.standard_normal((side, 21)).astype(dtype), np.full((side + 1, lanes), 7.0, dtype)
    columns, rows = rng.standard_normal((2, side)).astype(dtype)
    turn(source, columns, rows, target)
    expected = columns[:, None] * source[:, :side].T * rows
    assert np.allclose(target[:side, :side], expected, rtol=10 * np.finfo(dtype).eps)
    assert (target[:, side:] == 7).all()
    assert (target[side:] == 7).all()
