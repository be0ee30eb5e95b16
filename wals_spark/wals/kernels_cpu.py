"""The exact half-step on a CPU: per row, a weighted Gramian by ``syrk`` and a Cholesky solve.

Importing this module imports numba; `wals_spark.wals.reference` is its NumPy twin.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from wals_spark.wals.lapack import call_by_address
from wals_spark.wals.microkernel import LINE_BYTES, rank_update

LOWER, PLAIN = ord("L"), ord("N")
OWN_PRODUCT = 192
"""Up to this width our product is faster than ``syrk``, beyond it slower: see benchmarks/wals.py."""


@njit(cache=True, nogil=True)
def padded_width(width, itemsize):  # type: ignore[no-untyped-def]  # numba infers the types
    """The width of rows that fill whole cache lines."""
    lanes = LINE_BYTES // itemsize
    return (width + lanes - 1) // lanes * lanes


@njit(cache=True, nogil=True)
def line_aligned(rows, width, like):  # type: ignore[no-untyped-def]  # numba infers the types
    """Zeros of shape (rows, width), of the dtype of `like`, that start on a cache line."""
    flat = np.zeros(rows * width + LINE_BYTES // like.itemsize, like.dtype)
    first = (LINE_BYTES - int(flat.ctypes.data) % LINE_BYTES) % LINE_BYTES // like.itemsize
    return flat[first : first + rows * width].reshape((rows, width))


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
def solve_rows(  # type: ignore[no-untyped-def]  # numba infers the types
    functions, rows, indptr, indices, m, d, features, h, gramian, g, ridge, rho, held, out, row_loss, failed, tile
):
    """Solve ``A_i u_i = rhs_i`` for some rows.

    ::

        A_i   = rho g_i G + sum_t d_t z_t z_t^T + lambda_i I
        rhs_i = sum_t (d_t + rho g_i h_t) m_t z_t - A_i[:, held] x_held
        loss  = c_i - rhs_i.u - u.(rhs_i - A_i u)

    Parameters
    ----------
    functions : uintp array of shape (3,)
        See `wals_spark.wals.lapack.addresses`; of the dtype of `features`.
    rows : int64 array
        Which rows to solve.
    indptr, indices, m, d : CSR of targets and extra weights
    features : array of shape (n, K)
        z_j; its last ``held.shape[1]`` coordinates have a given value on the solved side.
    h : array of shape (n,)
    gramian : array of shape (K, K)
        G = sum_j h_j z_j z_j^T.
    g : array of shape (rows,)
    ridge : array of shape (rows, free)
        The diagonal that is added, lambda_i for factors and 0 for a bias.
    rho : float
    held : float64 array of shape (rows, K - free)
    out : array of shape (rows, free), written
    row_loss : float64 array of shape (rows,), written
        The row's part of the objective, its regularisation included.
    failed : int8 array of shape (rows,), written
        1 where A_i is not positive definite.
    tile : int
        Cells that are gathered at once.
    """
    width = features.shape[1]
    fixed = held.shape[1]
    free = width - fixed
    dtype = features.dtype
    padded = padded_width(width, features.itemsize)
    a = line_aligned(padded, padded, features)  # column-major for BLAS; its lower triangle is ours upper
    factor = np.empty((free, free), dtype)
    gathered = line_aligned(tile, padded, features)
    partial = np.empty(width, dtype)
    rhs = np.empty(width, np.float64)
    reduced = np.empty(free, np.float64)
    x = np.empty(free, dtype)
    residual = np.empty(free, np.float64)
    one = np.ones(1, dtype)
    sign = np.ones(1, dtype)
    sizes = np.zeros(5, np.int32)
    sizes[0], sizes[2], sizes[3], sizes[4] = width, free, 1, padded
    info = np.zeros(1, np.int32)
    lower = np.full(1, LOWER, np.uint8)
    plain = np.full(1, PLAIN, np.uint8)
    at_width, at_count = sizes.ctypes.data, sizes[1:].ctypes.data
    at_free, at_single, at_padded = sizes[2:].ctypes.data, sizes[3:].ctypes.data, sizes[4:].ctypes.data
    for i in rows:
        start, stop = indptr[i], indptr[i + 1]
        if start == stop:
            out[i, :] = 0
            row_loss[i] = 0.0
            continue
        scale = rho * g[i]
        for p in range(width):
            for q in range(p, width):
                a[p, q] = scale * gramian[p, q]
        rhs[:] = 0.0
        constant = 0.0
        begin = start
        while begin < stop:
            end = min(begin + tile, stop)
            front, back = 0, tile
            partial[:] = 0
            for t in range(begin, end):
                j = indices[t]
                weight = d[t]
                coefficient = (weight + scale * h[j]) * m[t]
                constant += float(coefficient) * m[t]
                # Negative extra weights are gathered from the back and subtracted.
                if weight >= 0:
                    at = front
                    front += 1
                else:
                    back -= 1
                    at = back
                root = np.sqrt(abs(weight))
                for q in range(width):
                    z = features[j, q]
                    partial[q] += coefficient * z
                    gathered[at, q] = root * z
            for q in range(width):
                rhs[q] += partial[q]
            if front > 0:
                if width <= OWN_PRODUCT:
                    rank_update(gathered, 0, front, a, one[0])
                else:
                    sizes[1], sign[0] = front, 1
                    call_by_address(
                        functions[0],
                        (
                            lower.ctypes.data, plain.ctypes.data, at_width, at_count, sign.ctypes.data,
                            gathered.ctypes.data, at_padded, one.ctypes.data, a.ctypes.data, at_padded,
                        ),
                    )  # fmt: skip
            if back < tile:
                if width <= OWN_PRODUCT:
                    rank_update(gathered, back, tile - back, a, -one[0])
                else:
                    sizes[1], sign[0] = tile - back, -1
                    call_by_address(
                        functions[0],
                        (
                            lower.ctypes.data, plain.ctypes.data, at_width, at_count, sign.ctypes.data,
                            gathered[back:].ctypes.data, at_padded, one.ctypes.data, a.ctypes.data, at_padded,
                        ),
                    )  # fmt: skip
            begin = end
        for p in range(free):
            shift = 0.0
            for q in range(fixed):
                shift += a[p, free + q] * held[i, q]
            reduced[p] = rhs[p] - shift
        for p in range(fixed):
            constant -= 2.0 * rhs[free + p] * held[i, p]
            for q in range(p, fixed):
                twice = 1.0 if p == q else 2.0
                constant += twice * a[free + p, free + q] * held[i, p] * held[i, q]
        for p in range(free):
            a[p, p] += ridge[i, p]
            x[p] = reduced[p]
            for q in range(p, free):
                factor[p, q] = a[p, q]
        call_by_address(functions[1], (lower.ctypes.data, at_free, factor.ctypes.data, at_free, info.ctypes.data))
        if info[0] != 0:
            failed[i] = 1
            continue
        call_by_address(
            functions[2],
            (
                lower.ctypes.data, at_free, at_single, factor.ctypes.data, at_free,
                x.ctypes.data, at_free, info.ctypes.data,
            ),
        )  # fmt: skip
        for p in range(free):
            residual[p] = reduced[p]
        for p in range(free):
            upper = 0.0
            value = float(x[p])
            for q in range(p + 1, free):
                entry = float(a[p, q])
                upper += entry * x[q]
                residual[q] -= entry * value
            residual[p] -= upper + float(a[p, p]) * value
        loss = constant
        for p in range(free):
            out[i, p] = x[p]
            loss -= (reduced[p] + residual[p]) * x[p]
        row_loss[i] = loss


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
def improve_rows(  # type: ignore[no-untyped-def]  # numba infers the types
    rows, indptr, indices, m, d, features, h, gramian, g, ridge, rho, steps, out, row_loss
):
    """A few steps of preconditioned conjugate gradients on ``A_i u_i = rhs_i``, from the rows of `out`.

    Parameters are those of `solve_rows` without held coordinates; `out` holds the start and is overwritten. A_i is
    never formed: a step costs 4 n_i K + 2 K^2 operations. The preconditioner is the diagonal of A_i. Every step lowers
    the loss.
    """
    width = features.shape[1]
    dtype = features.dtype
    nothing, number = np.zeros(1, dtype), np.zeros(1, dtype)
    x, rhs, product = np.empty(width, dtype), np.empty(width, dtype), np.empty(width, dtype)
    r, p, scaled, diagonal = (
        np.empty(width, dtype),
        np.empty(width, dtype),
        np.empty(width, dtype),
        np.empty(width, dtype),
    )
    for i in rows:
        start, stop = indptr[i], indptr[i + 1]
        if start == stop:
            out[i, :] = 0
            row_loss[i] = 0.0
            continue
        scale = rho * g[i]
        constant = 0.0
        for q in range(width):
            x[q] = out[i, q]
            diagonal[q] = scale * gramian[q, q] + ridge[i, q]
        rhs[:] = 0
        product[:] = 0
        for t in range(start, stop):
            j, weight = indices[t], d[t]
            coefficient = (weight + scale * h[j]) * m[t]
            constant += float(coefficient) * m[t]
            s = nothing[0]
            for q in range(width):
                s += features[j, q] * x[q]
            s *= weight
            for q in range(width):
                z = features[j, q]
                rhs[q] += coefficient * z
                product[q] += s * z
                diagonal[q] += weight * z * z
        _add_dense(product, x, gramian, scale, ridge[i])
        rz = 0.0
        for q in range(width):
            r[q] = rhs[q] - product[q]
            scaled[q] = r[q] / diagonal[q]
            p[q] = scaled[q]
            rz += float(r[q]) * scaled[q]
        for _ in range(steps):
            if rz <= 0.0:
                break
            product[:] = 0
            for t in range(start, stop):
                j = indices[t]
                s = nothing[0]
                for q in range(width):
                    s += features[j, q] * p[q]
                s *= d[t]
                for q in range(width):
                    product[q] += s * features[j, q]
            _add_dense(product, p, gramian, scale, ridge[i])
            curvature = 0.0
            for q in range(width):
                curvature += float(p[q]) * product[q]
            if curvature <= 0.0:
                break
            number[0] = rz / curvature
            step = number[0]
            following = 0.0
            for q in range(width):
                x[q] += step * p[q]
                r[q] -= step * product[q]
                scaled[q] = r[q] / diagonal[q]
                following += float(r[q]) * scaled[q]
            number[0] = following / rz
            turn = number[0]
            for q in range(width):
                p[q] = scaled[q] + turn * p[q]
            rz = following
        loss = constant
        for q in range(width):
            out[i, q] = x[q]
            loss -= (float(rhs[q]) + r[q]) * x[q]
        row_loss[i] = loss


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
def _add_dense(product, x, gramian, scale, ridge):  # type: ignore[no-untyped-def]  # numba infers the types
    """``product += (scale G + diag(ridge)) x`` for a symmetric G."""
    width = len(x)
    for q in range(width):
        factor = scale * x[q]
        for p in range(width):
            product[p] += factor * gramian[q, p]
        product[q] += ridge[q] * x[q]
