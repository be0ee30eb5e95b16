"""Rows without negative factors: the normal equations of each row, and their non-negative least-squares solution.

::

    minimise  x^T A x - 2 b^T x   over x >= 0

Coordinate descent finds which coordinates are positive, nearly; an active-set method makes it exact, so that
``x >= 0, w = b - A x <= 0, x w = 0``. Everything is in float64. Importing this module imports numba.

References
----------
Lawson and Hanson, "Solving least squares problems", 1974, chapter 23. Bro and de Jong, "A fast
non-negativity-constrained least squares algorithm", Journal of Chemometrics 11, 1997: the same on the normal equations.
"""

from __future__ import annotations

import numpy as np

from wals_spark.compiled import compiled

DESCENT_SWEEPS = 30
TOLERANCE = 1e-11
"""Of the largest entry of b: what a coordinate's gradient may be above zero."""


@compiled(nogil=True)
def solve_rows_nonnegative(rows, cells, fixed, terms, solution):  # type: ignore[no-untyped-def]
    """Solve some rows; see `wals_spark.wals.solvers.kernels.normal_equations.solve_rows` for A and b.

    Parameters
    ----------
    rows : int64 array
        Which rows to solve.
    cells : CsrArrays
    fixed : FixedSide
        All coordinates are solved for.
    terms : RowTerms
    solution : Solution
        `failed` becomes 1 where A_i is not positive definite.
    """
    indptr, indices, m, d = cells
    z, h, gramian, rho = fixed
    g, ridge, _, _ = terms
    out, row_loss, failed = solution
    k = gramian.shape[0]
    a, b = np.empty((k, k)), np.empty(k)
    for i in rows:
        if indptr[i] == indptr[i + 1]:
            out[i, :] = 0
            row_loss[i] = 0.0
            continue
        scale = rho * g[i]
        constant = 0.0
        b[:] = 0
        for c in range(k):
            for e in range(k):
                a[c, e] = scale * gramian[c, e]
            a[c, c] += ridge[i, c]
        for t in range(indptr[i], indptr[i + 1]):
            j = indices[t]
            coefficient = (d[t] + scale * h[j]) * m[t]
            constant += coefficient * m[t]
            for c in range(k):
                b[c] += coefficient * z[j, c]
                weighted = d[t] * z[j, c]
                for e in range(k):
                    a[c, e] += weighted * z[j, e]
        x, solved = nonnegative_solution(a, b)
        if not solved:
            failed[i] = 1
            continue
        loss = constant
        for c in range(k):
            out[i, c] = x[c]
            x[c] = out[i, c]
        for c in range(k):
            product = 0.0
            for e in range(k):
                product += a[c, e] * x[e]
            loss += x[c] * (product - 2.0 * b[c])
        row_loss[i] = loss


@compiled(nogil=True)
def nonnegative_solution(a, b):  # type: ignore[no-untyped-def]
    """The x of the module's formula.

    Parameters
    ----------
    a : float64 array of shape (k, k), symmetric
    b : float64 array of shape (k,)

    Returns
    -------
    x : float64 array of shape (k,)
    solved : bool
        False where A is not positive definite.
    """
    k = len(b)
    x = np.zeros(k)
    w = b.copy()  # b - A x
    for c in range(k):
        if not a[c, c] > 0:
            return x, False
    for _ in range(DESCENT_SWEEPS):
        for c in range(k):
            value = max(0.0, x[c] + w[c] / a[c, c])
            step = value - x[c]
            if step != 0:
                x[c] = value
                for e in range(k):
                    w[e] -= step * a[c, e]
    allowed = TOLERANCE * np.abs(b).max()
    positive = x > 0
    factor, target = np.empty((k, k)), np.empty(k)
    for _ in range(20 * k + 20):
        # To the minimum over the positive coordinates, or as far as none becomes negative.
        while positive.any():
            if not _solve_positive(a, b, positive, factor, target):
                return x, False
            share, blocking = 1.0, -1
            for c in range(k):
                if positive[c] and target[c] <= 0:
                    reach = x[c] / (x[c] - target[c]) if x[c] > 0 else 0.0
                    if blocking < 0 or reach < share:
                        share, blocking = reach, c
            for c in range(k):
                if positive[c]:
                    x[c] += share * (target[c] - x[c])
            if blocking < 0:
                break
            x[blocking] = 0.0
            positive[blocking] = False
        best, entering = allowed, -1
        for c in range(k):
            if not positive[c]:
                gradient = b[c]
                for e in range(k):
                    gradient -= a[c, e] * x[e]
                if gradient > best:
                    best, entering = gradient, c
        if entering < 0:
            return x, True
        positive[entering] = True
    return x, True


@compiled(nogil=True)
def _solve_positive(a, b, positive, factor, target):  # type: ignore[no-untyped-def]
    """``A_PP x_P = b_P`` by Cholesky into `target`; False where A_PP is not positive definite."""
    k = len(b)
    index = np.flatnonzero(positive)
    n = len(index)
    for r in range(n):
        for s in range(r + 1):
            total = a[index[r], index[s]]
            for q in range(s):
                total -= factor[r, q] * factor[s, q]
            if r > s:
                factor[r, s] = total / factor[s, s]
            elif total > 1e-14 * a[index[r], index[r]]:
                factor[r, r] = np.sqrt(total)
            else:
                return False
    for c in range(k):
        target[c] = 0.0
    for r in range(n):
        total = b[index[r]]
        for q in range(r):
            total -= factor[r, q] * target[index[q]]
        target[index[r]] = total / factor[r, r]
    for r in range(n - 1, -1, -1):
        total = target[index[r]]
        for q in range(r + 1, n):
            total -= factor[q, r] * target[index[q]]
        target[index[r]] = total / factor[r, r]
    return True
