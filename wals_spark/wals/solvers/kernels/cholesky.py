"""Cholesky factorisation and solution in panels, see `wals_spark.wals.solvers.kernels.packed_panels`.

::

    A = R^T R,  R upper triangular,   A x = b  by  R^T y = b,  R x = y

A block of L rows at a time: products with the rows above, then the L x L triangle on the diagonal, whose inverse turns
the rest of the block into a product as well. Importing this module imports numba.
"""

from __future__ import annotations

import numpy as np

from wals_spark.compiled import compiled
from wals_spark.wals.solvers.cache_lines import LINE_BYTES
from wals_spark.wals.solvers.kernels.microkernel import REGISTER_BYTES, add_line, rows_across, rows_down, scale_line
from wals_spark.wals.solvers.kernels.packed_panels import add_product, sum_of


@compiled(nogil=True)
def factorise(a, width, factor, inverses, scratch):  # type: ignore[no-untyped-def]  # numba infers the types
    """``A = R^T R``, R into `factor`.

    Parameters
    ----------
    a : panel matrix of `width` rows and columns
        Its upper triangle is read. It and `factor` are different memory.
    width : int
    factor : panel matrix of the same shape, written
    inverses : array of shape (panels, L, L), written
        Inverses of the triangles on the diagonal of R.
    scratch : panel matrix of L rows and one panel

    Returns
    -------
    bool
        False when A is not positive definite; `factor` is undefined then.

    References
    ----------
    Golub and Van Loan, "Matrix computations", 4th edition, 2013, chapter 4.
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
        for r in range(lanes):
            scale_line(above + row + r * LINE_BYTES, temporary + r * LINE_BYTES, one)
        for q in range(b + 1, panels):
            add_product(
                base, first, lanes, base + q * stride, first, a.ctypes.data + q * a.strides[0] + row, temporary,
                stride, -one,
            )  # fmt: skip
            add_product(inverses[b].ctypes.data, 0, lanes, temporary, lanes, blank, base + q * stride + row, 0, one)
    return True


@compiled(nogil=True)
def _triangle(d, inverse, lanes):  # type: ignore[no-untyped-def]
    """R of one L x L block in place, and its inverse; what lies below the diagonal of R is undefined."""
    at, other = d.ctypes.data, inverse.ctypes.data
    one = d.dtype.type(1)
    inverse[:, :] = 0
    for r in range(lanes):
        pivot = d[r, r]
        if not pivot > 0:
            return False
        scale = one / np.sqrt(pivot)
        inverse[r, r] = scale
        scale_line(at + r * LINE_BYTES, at + r * LINE_BYTES, scale)
        for s in range(r + 1, lanes):
            add_line(at + s * LINE_BYTES, at + r * LINE_BYTES, -d[r, s])
    for s in range(lanes - 1, 0, -1):
        for r in range(s):
            add_line(other + r * LINE_BYTES, other + s * LINE_BYTES, -inverse[r, r] * d[r, s])
    return True


@compiled(nogil=True)
def solve_factored(factor, width, inverses, b):  # type: ignore[no-untyped-def]
    """``b <- A^-1 b`` for a vector padded to whole lines; what lies beyond `width` is taken as zero.

    Parameters
    ----------
    factor : panel matrix
        See `factorise`.
    width : int
    inverses : array of shape (panels, L, L)
        See `factorise`.
    b : array of shape (panels L,), C-contiguous
    """
    lanes = factor.shape[2]
    panels = (width + lanes - 1) // lanes
    at, base, one = b.ctypes.data, factor.ctypes.data, b.dtype.type(1)
    sums = np.zeros((panels * lanes, REGISTER_BYTES // b.itemsize), b.dtype)  # what later panels take from a row
    across = sums.ctypes.data
    part = np.empty(lanes, b.dtype)
    b[width:] = 0
    for q in range(panels):
        first = q * lanes
        line = at + first * b.itemsize
        rows_down(base + q * factor.strides[0], 0, first, at, line, line, across, one, one)
        for c in range(lanes):
            part[c] = -b[first + c]
            b[first + c] = 0
        rows_down(inverses[q].ctypes.data, 0, lanes, part.ctypes.data, line, line, across, one, one)
    b[width:] = 0
    for q in range(panels - 1, -1, -1):
        first = q * lanes
        line, own = at + first * b.itemsize, across + first * REGISTER_BYTES
        for r in range(lanes):
            part[r] = b[first + r] - sum_of(sums[first + r])
            sums[first + r, :] = 0
        rows_across(inverses[q].ctypes.data, 0, lanes, at, line, part.ctypes.data, own, one, one)
        for r in range(lanes):
            b[first + r] = sum_of(sums[first + r])
        rows_across(base + q * factor.strides[0], 0, first, at, line, line, across, one, one)
