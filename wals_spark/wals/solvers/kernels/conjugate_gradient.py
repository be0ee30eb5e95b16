"""The half-step by preconditioned conjugate gradients, without forming a row's matrix.

Importing this module imports numba; `oracles.wals` is its NumPy twin.
"""

from __future__ import annotations

import numpy as np

from wals_spark.compiled import compiled


@compiled(nogil=True, fastmath={"contract", "reassoc"})
def improve_rows(  # type: ignore[no-untyped-def]  # numba infers the types
    rows, indptr, indices, m, d, features, h, gramian, g, ridge, rho, steps, out, row_loss
):
    """A few steps of preconditioned conjugate gradients on ``A_i u_i = rhs_i``, from the rows of `out`.

    Parameters are those of `wals_spark.wals.solvers.kernels.normal_equations.solve_rows` without held coordinates;
    `out` holds the start and is overwritten. A_i is never formed: a step costs 4 n_i K + 2 K^2 operations. The
    preconditioner is the diagonal of A_i. Every step lowers the loss.
    """
    width = gramian.shape[0]
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


@compiled(nogil=True, fastmath={"contract", "reassoc"})
def _add_dense(product, x, gramian, scale, ridge):  # type: ignore[no-untyped-def]  # numba infers the types
    """``product += (scale G + diag(ridge)) x`` for a symmetric G."""
    width = len(x)
    for q in range(width):
        factor = scale * x[q]
        for p in range(width):
            product[p] += factor * gramian[q, p]
        product[q] += ridge[q] * x[q]
