"""Cholesky factorisation and solution in panels, see `wals_spark.wals.kernels.microkernel`.

::

    A = R^T R,  R upper triangular,   A x = b  by  R^T y = b,  R x = y

A block of L rows at a time: products with the rows above, then the L x L triangle on the diagonal, whose inverse turns
the rest of the block into a product as well. Importing this module imports numba.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from wals_spark.wals.kernels.microkernel import add_line, add_product


@njit(cache=True, nogil=True)
def factorise(a, width, factor, inverses, scratch):  # type: ignore[no-untyped-def]  # numba infers the types
    """R into `factor`; False when A is not positive definite.

    Parameters
    ----------
    a : panel matrix of `width` rows and columns
        Its upper triangle is read. It and `factor` are different memory.
    width : int
    factor : panel matrix of the same shape, written
    inverses : array of shape (panels, L, L), written
        Inverses of the triangles on the diagonal of R.
    scratch : panel matrix of L rows and one panel
    """
    lanes = a.shape[2]
    panels = (width + lanes - 1) // lanes
    one = factor.dtype.type(1)
    stride = factor.strides[0]
    base, temporary = factor.ctypes.data, scratch.ctypes.data
    blank = scratch[1].ctypes.data
    for b in range(panels):
        first = b * lanes
        row = first * factor.strides[1]
        above = base + b * stride
        add_product(base, first, lanes, above, first, a.ctypes.data + b * a.strides[0] + row, temporary, stride, -one)
        for r in range(first + lanes - width):
            scratch[0, lanes - 1 - r, :] = 0
            scratch[0, :lanes, lanes - 1 - r] = 0
            scratch[0, lanes - 1 - r, lanes - 1 - r] = 1
        if not _triangle(scratch[0], inverses[b], lanes):
            return False
        factor[b, first : first + lanes, :] = scratch[0, :lanes, :]
        for q in range(b + 1, panels):
            add_product(
                base, first, lanes, base + q * stride, first, a.ctypes.data + q * a.strides[0] + row, temporary,
                stride, -one,
            )  # fmt: skip
            add_product(inverses[b].ctypes.data, 0, lanes, temporary, lanes, blank, base + q * stride + row, 0, one)
    return True


@njit(cache=True, nogil=True)
def _triangle(d, inverse, lanes):  # type: ignore[no-untyped-def]
    """R of one L x L block in place (zeros below the diagonal), and its inverse."""
    bytes_of = d.strides[0]
    at, other = d.ctypes.data, inverse.ctypes.data
    for r in range(lanes):
        pivot = d[r, r]
        if not pivot > 0:
            return False
        scale = 1 / np.sqrt(pivot)
        for c in range(lanes):
            d[r, c] = d[r, c] * scale if c >= r else 0
        for s in range(r + 1, lanes):
            add_line(at + s * bytes_of, at + r * bytes_of, -d[r, s])
    for r in range(lanes - 1, -1, -1):
        inverse[r, :] = 0
        inverse[r, r] = 1
        for s in range(r + 1, lanes):
            add_line(other + r * bytes_of, other + s * bytes_of, -d[r, s])
        scale = 1 / d[r, r]
        for c in range(r, lanes):
            inverse[r, c] *= scale
    return True


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
def solve_factored(factor, width, inverses, b):  # type: ignore[no-untyped-def]
    """``b <- A^-1 b`` for a vector padded to whole lines; what lies beyond `width` is taken as zero.

    Parameters
    ----------
    factor, inverses : see `factorise`
    width : int
    b : array of shape (panels L,), C-contiguous
    """
    lanes = factor.shape[2]
    panels = (width + lanes - 1) // lanes
    size = b.itemsize
    at, base = b.ctypes.data, factor.ctypes.data
    part = np.empty(lanes, b.dtype)
    b[width:] = 0
    for q in range(panels):
        first = q * lanes
        for t in range(first):
            add_line(at + first * size, base + q * factor.strides[0] + t * factor.strides[1], -b[t])
        part[:] = b[first : first + lanes]
        b[first : first + lanes] = 0
        for t in range(lanes):
            add_line(at + first * size, inverses[q, t].ctypes.data, part[t])
    b[width:] = 0
    for q in range(panels - 1, -1, -1):
        first = q * lanes
        for r in range(lanes):
            total = b[first + r]
            for s in range(q + 1, panels):
                for c in range(lanes):
                    total -= factor[s, first + r, c] * b[s * lanes + c]
            part[r] = total
        for r in range(lanes):
            total = part[r] * inverses[q, r, r]
            for c in range(r + 1, lanes):
                total += inverses[q, r, c] * part[c]
            b[first + r] = total
