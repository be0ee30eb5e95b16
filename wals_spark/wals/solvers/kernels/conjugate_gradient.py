"""The half-step by preconditioned conjugate gradients, without forming a row's matrix.

Importing this module imports numba; `oracles.wals` has the oracle.

References
----------
Golub and Van Loan, "Matrix computations", 4th edition, 2013, chapter 11.
"""

from __future__ import annotations

import numpy as np

from wals_spark.compiled import compiled


@compiled(nogil=True, fastmath={"contract", "reassoc"})
def refine_rows(rows, cells, fixed, terms, solution, steps):  # type: ignore[no-untyped-def]
    """A few steps of preconditioned conjugate gradients on ``A_i u_i = rhs_i``, from ``solution.x``.

    A_i and rhs_i are those of `wals_spark.wals.solvers.kernels.normal_equations.solve_rows`. A_i is never formed: a
    step costs 4 n_i K + 2 K^2 operations. The preconditioner is the diagonal of A_i. Every step lowers the loss.

    Parameters
    ----------
    rows : int64 array
    cells : CsrArrays
    fixed : FixedSide
    terms : RowTerms
        Without known coordinates and linear term.
    solution : Solution
        The rows as they are; overwritten.
    steps : int
    """
    indptr, indices, m, d = cells
    z, h, gramian, rho = fixed
    g, ridge, _, _ = terms
    out, row_loss, _ = solution
    width = gramian.shape[0]
    dtype = z.dtype
    nothing, number = np.zeros(1, dtype), np.zeros(1, dtype)
    x, rhs, product = np.empty(width, dtype), np.empty(width, dtype), np.empty(width, dtype)
    r, p = np.empty(width, dtype), np.empty(width, dtype)
    scaled, diagonal = np.empty(width, dtype), np.empty(width, dtype)
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
                s += z[j, q] * x[q]
            s *= weight
            for q in range(width):
                zq = z[j, q]
                rhs[q] += coefficient * zq
                product[q] += s * zq
                diagonal[q] += weight * zq * zq
        _add_dense(product, x, gramian, scale, ridge[i])
        r_dot_scaled = 0.0
        for q in range(width):
            r[q] = rhs[q] - product[q]
            scaled[q] = r[q] / diagonal[q]
            p[q] = scaled[q]
            r_dot_scaled += float(r[q]) * scaled[q]
        for _ in range(steps):
            if r_dot_scaled <= 0.0:
                break
            product[:] = 0
            for t in range(start, stop):
                j = indices[t]
                s = nothing[0]
                for q in range(width):
                    s += z[j, q] * p[q]
                s *= d[t]
                for q in range(width):
                    product[q] += s * z[j, q]
            _add_dense(product, p, gramian, scale, ridge[i])
            curvature = 0.0
            for q in range(width):
                curvature += float(p[q]) * product[q]
            if curvature <= 0.0:
                break
            number[0] = r_dot_scaled / curvature
            step = number[0]
            next_r_dot_scaled = 0.0
            for q in range(width):
                x[q] += step * p[q]
                r[q] -= step * product[q]
                scaled[q] = r[q] / diagonal[q]
                next_r_dot_scaled += float(r[q]) * scaled[q]
            number[0] = next_r_dot_scaled / r_dot_scaled
            momentum = number[0]
            for q in range(width):
                p[q] = scaled[q] + momentum * p[q]
            r_dot_scaled = next_r_dot_scaled
        loss = constant
        for q in range(width):
            out[i, q] = x[q]
            loss -= (float(rhs[q]) + r[q]) * x[q]
        row_loss[i] = loss


@compiled(nogil=True, fastmath={"contract", "reassoc"})
def _add_dense(product, x, gramian, scale, ridge):  # type: ignore[no-untyped-def]  # numba infers the types
    """``product += (scale G + diag(ridge)) x`` for a symmetric G."""
    width = len(x)
    for q in range(width):
        factor = scale * x[q]
        for p in range(width):
            product[p] += factor * gramian[q, p]
        product[q] += ridge[q] * x[q]
