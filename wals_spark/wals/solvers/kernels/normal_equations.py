"""The exact half-step on a CPU: the normal equations of each row and their Cholesky solution, both in registers.

Importing this module imports numba; `oracles.wals` has the oracle.

References
----------
Hu, Koren and Volinsky, "Collaborative filtering for implicit feedback datasets", ICDM 2008.
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
def solve_rows(rows, cells, fixed, terms, solution, tile):  # type: ignore[no-untyped-def]  # numba infers the types
    """Solve ``A_i u_i = rhs_i`` for some rows.

    ::

        A_i   = rho g_i G + sum_t d_t z_t z_t^T + lambda_i I
        rhs_i = sum_t (d_t + rho g_i h_t) m_t z_t + linear_term_i - A_i[:, known] x_known
        loss  = c_i - rhs_i.u - u.(rhs_i - A_i u)

    Parameters
    ----------
    rows : int64 array
        Which rows to solve.
    cells : CsrArrays
    fixed : FixedSide
    terms : RowTerms
    solution : Solution
        `failed` becomes 1 where A_i is not positive definite, or without ridge and unobserved weight is singular but
        for rounding, see `_is_singular`.
    tile : int
        Cells that are gathered at once.
    """
    indptr, indices, m, d = cells
    z, h, gramian, rho = fixed
    g, ridge, known, linear_term = terms
    out, row_loss, failed = solution
    width = gramian.shape[0]
    knowns = known.shape[1]
    free = width - knowns
    lanes = lanes_of(z)
    panels = (width + lanes - 1) // lanes
    a = empty_panels(width, width, z)
    base = to_panels(gramian)
    factor = empty_panels(width, width, z)
    inverses = np.zeros((panels, lanes, lanes), z.dtype)
    scratch = empty_panels(1, lanes, z)
    gathered = empty_panels(width, tile, z)
    panel_bytes = gathered.strides[0]
    partial = np.empty(panels * lanes, z.dtype)
    x = np.empty(panels * lanes, z.dtype)
    rhs, residual = np.empty(panels * lanes, np.float64), np.empty(panels * lanes, np.float64)
    x64 = np.empty(panels * lanes, np.float64)
    one = z.dtype.type(1)
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
                source = z.ctypes.data + j * z.strides[0]
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
        for p in range(knowns):
            column = free + p
            value = known[i, p]
            constant -= 2.0 * rhs[column] * value
            for q in range(p, knowns):
                twice = 1.0 if p == q else 2.0
                other = free + q
                constant += twice * a[other // lanes, column, other % lanes] * value * known[i, q]
            for c in range(free):
                rhs[c] -= a[column // lanes, c, column % lanes] * value
        for c in range(free):
            a[c // lanes, c, c % lanes] += ridge[i, c]
            if len(linear_term):
                rhs[c] += linear_term[i, c]
            x[c] = rhs[c]
        if not factorise(a, free, factor, inverses, scratch):
            failed[i] = 1
            continue
        if scale == 0 and ridge[i, 0] == 0 and _is_singular(a, factor, free, stop - start):
            failed[i] = 1
            continue
        solve_factored(factor, free, inverses, x)
        x[free:] = 0
        residual[:] = rhs
        x64[:] = x
        subtract_product(a, free, x64, residual)
        loss = constant
        for c in range(free):
            out[i, c] = x[c]
            loss -= (rhs[c] + residual[c]) * x64[c]
        row_loss[i] = loss


@compiled(nogil=True)
def _is_singular(a, factor, width, cells):  # type: ignore[no-untyped-def]
    """Whether A, a sum over cells alone, has fewer of them than columns, or pivots that are rounding errors.

    Parameters
    ----------
    a, factor : panel matrices
        A and its R: ``r_cc^2`` is what is left of ``a_cc``.
    width, cells : int

    Returns
    -------
    bool
    """
    lanes = a.shape[2]
    # A thousand roundings: those of the pivots before grow with the condition of their block.
    rounding = 1e3 * (1.2e-7 if a.itemsize == 4 else 2.3e-16)
    singular = cells < width
    for c in range(width):
        pivot = factor[c // lanes, c, c % lanes]
        singular |= pivot * pivot <= rounding * a[c // lanes, c, c % lanes]
    return singular
