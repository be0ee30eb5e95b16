"""The exact half-step on a CPU: per row, a weighted Gramian and a Cholesky solve, both in registers.

Importing this module imports numba; `oracles.wals` is its NumPy twin.
"""

from __future__ import annotations

import numpy as np

from wals_spark.compiled import compiled
from wals_spark.wals.solvers.cache_lines import LINE_BYTES
from wals_spark.wals.solvers.kernels.cholesky import factorise, solve_factored
from wals_spark.wals.solvers.kernels.microkernel import add_line, scale_line
from wals_spark.wals.solvers.kernels.packed_panels import (
    empty_panels,
    lanes_of,
    rank_update,
    scale_triangle,
    subtract_product,
    to_panels,
)


@compiled(nogil=True, fastmath={"contract", "reassoc"})
def solve_rows(  # type: ignore[no-untyped-def]  # numba infers the types
    rows, indptr, indices, m, d, features, h, gramian, g, ridge, rho, held, pull, out, row_loss, failed, tile
):
    """Solve ``A_i u_i = rhs_i`` for some rows.

    ::

        A_i   = rho g_i G + sum_t d_t z_t z_t^T + lambda_i I
        rhs_i = sum_t (d_t + rho g_i h_t) m_t z_t + pull_i - A_i[:, held] x_held
        loss  = c_i - rhs_i.u - u.(rhs_i - A_i u)

    Parameters
    ----------
    rows : int64 array
        Which rows to solve.
    indptr, indices, m, d : CSR of targets and extra weights
    features : array of shape (n, K in whole lines)
        z_j, see `wals_spark.wals.solvers.cache_lines`; its last ``held.shape[1]`` coordinates have a given
        value on the solved side.
    h : array of shape (n,)
    gramian : array of shape (K, K)
        G = sum_j h_j z_j z_j^T.
    g : array of shape (rows,)
    ridge : array of shape (rows, free)
        The diagonal that is added, lambda_i for factors and 0 for a bias.
    rho : float
    held : float64 array of shape (rows, K - free)
    pull : float64 array of shape (rows, free), or (0, free) for none
    out : array of shape (rows, free), written
    row_loss : float64 array of shape (rows,), written
        The row's part of the objective, its regularisation included.
    failed : int8 array of shape (rows,), written
        1 where A_i is not positive definite.
    tile : int
        Cells that are gathered at once.
    """
    width = gramian.shape[0]
    fixed = held.shape[1]
    free = width - fixed
    lanes = lanes_of(features)
    panels = (width + lanes - 1) // lanes
    a = empty_panels(width, width, features)
    base = to_panels(gramian)
    factor = empty_panels(width, width, features)
    inverses = np.zeros((panels, lanes, lanes), features.dtype)
    scratch = empty_panels(1, lanes, features)
    gathered = empty_panels(width, tile, features)
    panel_bytes = gathered.strides[0]
    partial = np.empty(panels * lanes, features.dtype)
    x = np.empty(panels * lanes, features.dtype)
    rhs, residual = np.empty(panels * lanes, np.float64), np.empty(panels * lanes, np.float64)
    solution = np.empty(panels * lanes, np.float64)
    one = features.dtype.type(1)
    for i in rows:
        start, stop = indptr[i], indptr[i + 1]
        if start == stop:
            out[i, :] = 0
            row_loss[i] = 0.0
            continue
        scale = rho * g[i]
        scale_triangle(base, width, scale, a)
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
                source = features.ctypes.data + j * features.strides[0]
                target = gathered.ctypes.data + at * LINE_BYTES
                for q in range(panels):
                    add_line(partial.ctypes.data + q * LINE_BYTES, source + q * LINE_BYTES, coefficient)
                    scale_line(target + q * panel_bytes, source + q * LINE_BYTES, root)
            for c in range(width):
                rhs[c] += partial[c]
            if front > 0:
                rank_update(gathered, width, 0, front, a, one)
            if back < tile:
                rank_update(gathered, width, back, tile - back, a, -one)
            begin = end
        for p in range(fixed):
            column = free + p
            value = held[i, p]
            constant -= 2.0 * rhs[column] * value
            for q in range(p, fixed):
                twice = 1.0 if p == q else 2.0
                other = free + q
                constant += twice * a[other // lanes, column, other % lanes] * value * held[i, q]
            for c in range(free):
                rhs[c] -= a[column // lanes, c, column % lanes] * value
        for c in range(free):
            a[c // lanes, c, c % lanes] += ridge[i, c]
            if len(pull):
                rhs[c] += pull[i, c]
            x[c] = rhs[c]
        if not factorise(a, free, factor, inverses, scratch):
            failed[i] = 1
            continue
        solve_factored(factor, free, inverses, x)
        x[free:] = 0
        residual[:] = rhs
        solution[:] = x
        subtract_product(a, free, solution, residual)
        loss = constant
        for c in range(free):
            out[i, c] = x[c]
            loss -= (rhs[c] + residual[c]) * solution[c]
        row_loss[i] = loss
