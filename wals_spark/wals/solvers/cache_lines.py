"""Rows of factors padded to whole cache lines: a kernel reads each line of a row once and has no rest to handle."""

from __future__ import annotations

import numpy as np

LINE_BYTES = 64


def padded_zeros(count: int, width: int, dtype: np.dtype) -> np.ndarray:
    """Zeros of shape (count, width rounded up to whole lines); the first row starts where a line starts."""
    lanes = LINE_BYTES // dtype.itemsize
    padded = -(-width // lanes) * lanes
    flat = np.zeros(count * padded + lanes, dtype)
    first = -flat.ctypes.data % LINE_BYTES // dtype.itemsize
    return flat[first : first + count * padded].reshape(count, padded)


def aligned_zeros(count: int, width: int, dtype: np.dtype) -> np.ndarray:
    """Zeros of shape (count, width) that `pad_rows` need not copy where a row is whole lines."""
    whole = width * dtype.itemsize % LINE_BYTES == 0
    return padded_zeros(count, width, dtype) if whole else np.zeros((count, width), dtype)


def pad_rows(x: np.ndarray) -> np.ndarray:
    """Rows padded with zeros to whole lines, each starting where a line starts; `x` itself where it is so already."""
    if x.flags.c_contiguous and x.ctypes.data % LINE_BYTES == 0 and x.shape[1] * x.itemsize % LINE_BYTES == 0:
        return x
    padded = padded_zeros(len(x), x.shape[1], x.dtype)
    padded[:, : x.shape[1]] = x
    return padded
