"""Gauss-Newton steps for the objective ``sum w (m - z - |u_i + v_j|^2)^2 + lambda |u_i|^2`` on a CPU.

Importing this module imports numba; `oracles.wals` has the oracle.
"""

from __future__ import annotations

import numpy as np

from wals_spark.compiled import compiled
from wals_spark.wals.solvers.kernels.cholesky import factorise, solve_factored
from wals_spark.wals.solvers.kernels.packed_panels import empty_panels, lanes_of, rank_update

HALVINGS = 20


@compiled(nogil=True, fastmath={"contract", "reassoc"})
def _residual(m, u, v):  # type: ignore[no-untyped-def]  # numba infers the types
    """``m - |u + v|^2``."""
    total = m - m
    for c in range(len(u)):
        y = u[c] + v[c]
        total += y * y
    return float(m) - float(total)


@compiled(nogil=True)
def sum_residuals(rows, cells, v, u, sums):  # type: ignore[no-untyped-def]
    """Per row the sums of w, w e and w e^2 with ``e = m - |u_i + v_j|^2``, into `sums`.

    Parameters
    ----------
    rows : int64 array
    cells : CsrArrays
        Its d is w.
    v, u : arrays of shapes (n, k) and (r, k)
    sums : float64 array of shape (r, 3), added to
    """
    indptr, indices, m, w = cells
    for i in rows:
        for t in range(indptr[i], indptr[i + 1]):
            e = _residual(m[t], u[i], v[indices[t]])
            sums[i, 0] += w[t]
            sums[i, 1] += w[t] * e
            sums[i, 2] += w[t] * e * e


@compiled(nogil=True)
def _loss(start, stop, indices, m, w, v, u, z, ridge):  # type: ignore[no-untyped-def]
    total = 0.0
    for t in range(start, stop):
        e = _residual(m[t], u, v[indices[t]]) - z
        total += w[t] * e * e
    for c in range(len(u)):
        total += ridge * float(u[c]) * u[c]
    return total


@compiled(nogil=True)
def step_rows(rows, cells, v, z, ridge, out, tile):  # type: ignore[no-untyped-def]
    """One Gauss-Newton step per row, halved until the row's loss falls; a row that cannot fall stays.

    ::

        (4 sum_t w y y^T + (lambda_i + max(0, -2 sum_t w e)) I) delta = 2 sum_t w e y - lambda_i u_i
        y = u_i + v_t,  e = m_t - z - |y|^2

    The second term is the part of the Hessian beyond Gauss-Newton, where it is positive.

    Parameters
    ----------
    rows : int64 array
    cells : CsrArrays
        Its d is w.
    v : array of shape (n, k)
    z : float
    ridge : float64 array of shape (rows,)
        lambda_i.
    out : array of shape (rows, k)
        The rows as they are; overwritten.
    tile : int
        Cells gathered at once.
    """
    indptr, indices, m, w = cells
    k = v.shape[1]
    lanes = lanes_of(v)
    panels = (k + lanes - 1) // lanes
    a, factor = empty_panels(k, k, v), empty_panels(k, k, v)
    inverses = np.zeros((panels, lanes, lanes), v.dtype)
    scratch = empty_panels(1, lanes, v)
    gathered = empty_panels(k, tile, v)
    step, right = np.empty(panels * lanes, v.dtype), np.empty(k, np.float64)
    trial = np.empty(k, v.dtype)
    one = v.dtype.type(1)
    for i in rows:
        start, stop = indptr[i], indptr[i + 1]
        if start == stop:
            out[i, :] = 0
            continue
        u = out[i]
        a[:] = 0
        residuals, before = 0.0, 0.0
        for c in range(k):
            right[c] = -ridge[i] * u[c]
            before += ridge[i] * float(u[c]) * u[c]
        for begin in range(start, stop, tile):
            end = min(begin + tile, stop)
            for t in range(begin, end):
                j = indices[t]
                e = _residual(m[t], u, v[j]) - z
                root = 2 * np.sqrt(w[t])
                residuals += w[t] * e
                before += w[t] * e * e
                for c in range(k):
                    y = u[c] + v[j, c]
                    gathered[c // lanes, t - begin, c % lanes] = root * y
                    right[c] += 2.0 * w[t] * e * y
            rank_update(gathered, k, 0, end - begin, a, one)
        for c in range(k):
            a[c // lanes, c, c % lanes] += ridge[i] + max(0.0, -2.0 * residuals)
            step[c] = right[c]
        if not factorise(a, k, factor, inverses, scratch):
            continue
        solve_factored(factor, k, inverses, step)
        share = 1.0
        for _ in range(HALVINGS):
            for c in range(k):
                trial[c] = u[c] + share * step[c]
            if _loss(start, stop, indices, m, w, v, trial, z, ridge[i]) < before:
                out[i, :] = trial
                break
            share *= 0.5
