"""Matrices in panels, and products of them.

``panels[q, t, :]`` holds the columns q L .. q L + L - 1 of row t, L numbers being a cache line of 64 bytes. Gathering
rows writes them so at no cost, and then everything a product reads lies in one piece: BLAS would pack its operands
first, which for a few hundred rows costs more than it saves. Importing this module imports numba.
"""

from __future__ import annotations

import numpy as np

from wals_spark.compiled import compiled
from wals_spark.wals.solvers.cache_lines import LINE_BYTES
from wals_spark.wals.solvers.kernels.microkernel import (
    REGISTER_BYTES,
    SHORT,
    TALL,
    rows_both,
    rows_down,
    scale_line,
    short_block,
    short_half_block,
    tall_block,
    tall_half_block,
)


@compiled(nogil=True)
def lanes_of(like):  # type: ignore[no-untyped-def]  # numba infers the types
    """L, the numbers of a line."""
    return LINE_BYTES // like.itemsize


@compiled(nogil=True, fastmath={"contract", "reassoc"})
def sum_of(numbers):  # type: ignore[no-untyped-def]
    """Of the few numbers of a register."""
    total = numbers[0]
    for c in range(1, len(numbers)):
        total += numbers[c]
    return total


@compiled(nogil=True)
def empty_panels(width, rows, like):  # type: ignore[no-untyped-def]
    """A zero panel matrix for `rows` rows of `width` numbers, starting on a line.

    There is one panel more than needed, and rows are filled up to whole blocks of L and 2 `TALL` more: products may
    reach beyond the width, never beyond the memory.
    """
    lanes = lanes_of(like)
    panels = (width + lanes - 1) // lanes + 1
    height = (rows + lanes - 1) // lanes * lanes + 2 * TALL
    size = panels * height * lanes
    flat = np.zeros(size + lanes, like.dtype)
    first = (LINE_BYTES - int(flat.ctypes.data) % LINE_BYTES) % LINE_BYTES // like.itemsize
    return flat[first : first + size].reshape((panels, height, lanes))


@compiled(nogil=True)
def add_product(left, p, rows, right, count, source, target, panel_bytes, sign):  # type: ignore[no-untyped-def]
    """``target[r, :] = source[r, :] + sign sum_t left[t, p + r] right[t, :]`` for r below `rows`, by addresses.

    Up to `TALL` - 1 lines after the last are written too.

    Parameters
    ----------
    left : int
        Address of a panel matrix.
    p : int
        The first of its columns.
    rows : int
    right : int
        Address of the lines of one panel.
    count : int
        Terms of the sum.
    source, target : int
        Addresses of lines.
    panel_bytes : int
        Bytes from a panel of `left` to the next.
    sign : float
        Its dtype is that of the numbers.
    """
    r = 0
    while r < rows:
        if rows - r > SHORT:
            tall_block(left, panel_bytes, p + r, right, count, source + r * LINE_BYTES, target + r * LINE_BYTES, sign)
            r += TALL
        else:
            short_block(left, panel_bytes, p + r, right, count, source + r * LINE_BYTES, target + r * LINE_BYTES, sign)
            r += SHORT


@compiled(nogil=True)
def add_half_product(left, p, rows, right, count, source, target, panel_bytes, sign):  # type: ignore[no-untyped-def]
    """`add_product` for the first half of each line; up to 2 `TALL` - 1 half lines after the last are written too.

    Parameters
    ----------
    left : int
        Address of a panel matrix.
    p : int
        The first of its columns.
    rows : int
    right : int
        Address of the lines of one panel.
    count : int
        Terms of the sum.
    source, target : int
        Addresses of lines.
    panel_bytes : int
        Bytes from a panel of `left` to the next.
    sign : float
        Its dtype is that of the numbers.
    """
    r = 0
    while r < rows:
        place, out = source + r * LINE_BYTES, target + r * LINE_BYTES
        if rows - r > SHORT:
            tall_half_block(left, panel_bytes, p + r, right, count, place, out, sign)
            r += 2 * TALL
        else:
            short_half_block(left, panel_bytes, p + r, right, count, place, out, sign)
            r += SHORT


@compiled(nogil=True)
def to_panels(matrix):  # type: ignore[no-untyped-def]
    """A matrix of shape (rows, width) as a panel matrix."""
    panels = empty_panels(matrix.shape[1], matrix.shape[0], matrix)
    lanes = panels.shape[2]
    for t in range(matrix.shape[0]):
        for c in range(matrix.shape[1]):
            panels[c // lanes, t, c % lanes] = matrix[t, c]
    return panels


@compiled(nogil=True)
def scale_triangle(source, width, factor, target):  # type: ignore[no-untyped-def]
    """``target = factor * source`` on and above the diagonal blocks.

    Parameters
    ----------
    source : panel matrix
    width : int
        Rows and columns.
    factor : float in the dtype of `source`
    target : panel matrix of the shape of `source`, written
    """
    lanes = source.shape[2]
    for q in range((width + lanes - 1) // lanes):
        at, out = source.ctypes.data + q * source.strides[0], target.ctypes.data + q * target.strides[0]
        for t in range((q + 1) * lanes):
            scale_line(out + t * LINE_BYTES, at + t * LINE_BYTES, factor)


@compiled(nogil=True)
def rank_update(gathered, width, first, count, target, sign):  # type: ignore[no-untyped-def]
    """``target += sign Z^T Z`` on and above the diagonal blocks, Z being rows first .. first + count - 1 of `gathered`.

    Parameters
    ----------
    gathered : panel matrix, see `empty_panels`
        Its numbers beyond `width` must be zero.
    width : int
        K, the columns of Z.
    first, count : int
    target : panel matrix of K rows and columns
        Entries below the L x L blocks on the diagonal are undefined afterwards.
    sign : 1 or -1 in the dtype of `gathered`
    """
    lanes = gathered.shape[2]
    used = (width + lanes - 1) // lanes
    base, out = gathered.ctypes.data + first * LINE_BYTES, target.ctypes.data
    stride = gathered.strides[0]
    for q in range(used):
        at, right, rows = out + q * target.strides[0], base + q * stride, min((q + 1) * lanes, width)
        if width - q * lanes <= lanes // 2:
            add_half_product(base, 0, rows, right, count, at, at, stride, sign)
        else:
            add_product(base, 0, rows, right, count, at, at, stride, sign)


@compiled(nogil=True)
def subtract_product(a, width, x, residual):  # type: ignore[no-untyped-def]  # numba infers the types
    """``residual -= A x`` in float64 for a symmetric panel matrix of which the upper triangle of blocks is known.

    Parameters
    ----------
    a : panel matrix of `width` rows and columns
    width : int
    x, residual : float64 arrays of shape (panels L,)
        x is zero beyond `width`; the residual there is undefined afterwards.
    """
    lanes = a.shape[2]
    sums = np.zeros((width, REGISTER_BYTES // x.itemsize), x.dtype)  # what later panels take from a row
    across = sums.ctypes.data
    narrow, wide = a.dtype.type(1), x.dtype.type(1)
    for q in range((width + lanes - 1) // lanes):
        first = q * lanes
        panel, stop = a.ctypes.data + q * a.strides[0], min(first + lanes, width)
        line, target = x.ctypes.data + first * x.itemsize, residual.ctypes.data + first * x.itemsize
        rows_both(panel, 0, first, x.ctypes.data, target, line, across, narrow, wide)
        rows_down(panel, first, stop, x.ctypes.data, target, line, across, narrow, wide)
    for t in range(width):
        residual[t] -= sum_of(sums[t])
