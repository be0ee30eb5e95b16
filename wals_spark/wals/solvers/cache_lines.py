"""Rows of factors in whole cache lines: a kernel reads every line of a row once, and no row has a rest."""

from __future__ import annotations

import numpy as np

LINE_BYTES = 64


def empty_lines(count: int, width: int, dtype: np.dtype) -> np.ndarray:
    """Zeros of shape (count, width rounded up to whole lines), starting where a line starts."""
    lanes = LINE_BYTES // dtype.itemsize
    padded = -(-width // lanes) * lanes
    flat = np.zeros(count * padded + lanes, dtype)
    first = -flat.ctypes.data % LINE_BYTES // dtype.itemsize
    return flat[first : first + count * padded].reshape(count, padded)


def zeros(count: int, width: int, dtype: np.dtype) -> np.ndarray:
    """Zeros of shape (count, width), such that `in_lines` need not copy them where rows are whole lines."""
    whole = width * dtype.itemsize % LINE_BYTES == 0
    return empty_lines(count, width, dtype) if whole else np.zeros((count, width), dtype)


def in_lines(x: np.ndarray) -> np.ndarray:
    """Rows padded with zeros to whole lines, starting where a line starts; `x` itself where it lies so."""
    if x.flags.c_contiguous and x.ctypes.data % LINE_BYTES == 0 and x.shape[1] * x.itemsize % LINE_BYTES == 0:
        return x
    lines = empty_lines(len(x), x.shape[1], x.dtype)
    lines[:, : x.shape[1]] = x
    return lines
