"""Rows with fewer cells than factors, solved through a system of the size of their cells: the Woodbury identity.

::

    A_i = D + Z^T W Z,   D = rho g_i Lambda + lambda_i I diagonal in the eigenbasis of the Gramian G = Q Lambda Q^T
    u   = D^-1 (p + Z^T q),   q = W^1/2 (I + W^1/2 S W^1/2)^-1 (W^-1/2 t - W^1/2 Z D^-1 p),   S = Z D^-1 Z^T

for ``A u = Z^T t + p``, Z holding the n cells' rows of the other side, in that basis. All eigenvalues of the n x n
matrix are 1 or more. It costs ``n^2 k + n^3 / 3`` in place of ``n k^2 + k^3 / 3``. A free bias b is the same with a
second right-hand side: ``u = u0 - b u1``. Importing this module imports numba; `oracles.wals` has the oracle.

References
----------
Woodbury, "Inverting modified matrices", Memorandum Report 42, Statistical Research Group, Princeton, 1950.
"""

from __future__ import annotations

import numpy as np

from wals_spark.compiled import compiled
from wals_spark.wals.solvers.cache_lines import LINE_BYTES
from wals_spark.wals.solvers.kernels.cholesky import factorise, solve_factored
from wals_spark.wals.solvers.kernels.microkernel import REGISTER_BYTES, scale_line, transpose_square
from wals_spark.wals.solvers.kernels.packed_panels import empty_panels, lanes_of, rank_update


@compiled(nogil=True, fastmath={"contract", "reassoc"})
def solve_short_rows(  # type: ignore[no-untyped-def]  # numba infers the types
    rows, cells, fixed, terms, solution, excess_allowed
):
    """Solve some rows in the eigenbasis of the Gramian.

    Parameters
    ----------
    rows : int64 array
    cells : CsrArrays
    fixed : RotatedSide
    terms : RowTerms
        Its linear term in the eigenbasis, of shape (rows, k) or (0, k).
    solution : Solution
        Factors in the eigenbasis, then the bias. `failed` becomes 1 where the row must be solved in another way: a
        weight is negative, D is not positive, or the loss may be further above its minimum than allowed.
    excess_allowed : float
        How far the row's loss may be above its minimum, relative to ``rhs.u``: r being the residual, it is at most
        ``r.D^-1 r``, since D is at most A.
    """
    indptr, indices, m, d = cells
    z, h, eigenvalues, rest, cross, corner, rho = fixed
    g, ridge, known, linear_term = terms
    out, row_loss, failed = solution
    k, padded = len(eigenvalues), z.shape[1]
    knowns = known.shape[1]
    biased = rest.shape[1] - knowns
    lanes, square = lanes_of(z), REGISTER_BYTES // z.itemsize
    most = 0
    for i in rows:
        most = max(most, indptr[i + 1] - indptr[i])
    panels = (most + lanes - 1) // lanes
    scaled_cells = empty_panels(most, k, z)  # (n, k) transposed: W^1/2 Z D^-1/2
    system, factor = empty_panels(most, most, z), empty_panels(most, most, z)
    inverses = np.zeros((panels, lanes, lanes), z.dtype)
    scratch = empty_panels(1, lanes, z)
    near = np.zeros((panels * lanes, padded), z.dtype)  # rows beyond the cells must be finite
    y = np.empty(panels * lanes, z.dtype)
    t0, t1, root = np.empty(most, np.float64), np.empty(most, np.float64), np.empty(panels * lanes, z.dtype)
    q0, q1 = np.empty(most, np.float64), np.empty(most, np.float64)
    diagonal, scaling = np.empty(k, np.float64), np.zeros(padded, z.dtype)
    p0, p1 = np.zeros(k, np.float64), np.zeros(k, np.float64)
    u0, u1 = np.zeros(k, np.float64), np.zeros(k, np.float64)
    residual = np.empty(k, np.float64)
    one = z.dtype.type(1)
    for i in rows:
        start, count = indptr[i], indptr[i + 1] - indptr[i]
        scale = float(rho) * g[i]
        solvable = True
        for c in range(k):
            diagonal[c] = scale * eigenvalues[c] + ridge[i, c]
            solvable &= diagonal[c] > 0
            p0[c] = linear_term[i, c] if len(linear_term) else 0.0
            for f in range(knowns):
                p0[c] -= scale * cross[c, biased + f] * known[i, f]
            if biased:
                p1[c] = scale * cross[c, 0]
        constant, right, bias = 0.0, 0.0, 0.0
        for f in range(knowns):
            for e in range(knowns):
                constant += scale * corner[biased + f, biased + e] * known[i, f] * known[i, e]
            if biased:
                right -= scale * corner[0, biased + f] * known[i, f]
        for t in range(count):
            j, weight = indices[start + t], float(d[start + t])
            shift = 0.0
            for f in range(knowns):
                shift += rest[j, biased + f] * known[i, f]
            coefficient = (weight + scale * h[j]) * m[start + t]
            constant += coefficient * m[start + t] - 2.0 * coefficient * shift + weight * shift * shift
            t0[t] = coefficient - weight * shift
            t1[t] = weight
            root[t] = np.sqrt(max(weight, 0.0))
            solvable &= weight > 0 or (weight == 0 and t0[t] == 0)
        if not solvable:
            failed[i] = 1
            continue
        for c in range(k):
            scaling[c] = 1.0 / np.sqrt(diagonal[c])
        for t in range(count):
            source, target = z.ctypes.data + indices[start + t] * z.strides[0], near.ctypes.data + t * near.strides[0]
            for line in range(0, z.strides[0], LINE_BYTES):
                scale_line(target + line, source + line, one)
        filled = (count + lanes - 1) // lanes
        root[count : filled * lanes] = 0
        for q in range(filled):
            for r in range(0, lanes, square):
                source = near.ctypes.data + (q * lanes + r) * near.strides[0]
                target = scaled_cells.ctypes.data + q * scaled_cells.strides[0] + r * z.itemsize
                roots = root.ctypes.data + (q * lanes + r) * z.itemsize
                for c in range(0, k, square):
                    at = c * z.itemsize
                    transpose_square(
                        source + at, near.strides[0], scaling.ctypes.data + at, roots, target + c * LINE_BYTES, one
                    )
        for q in range(filled):
            system[q, : (q + 1) * lanes, :] = 0
        for t in range(count):
            system[t // lanes, t, t % lanes] = 1
        rank_update(scaled_cells, count, 0, k, system, one)
        if not factorise(system, count, factor, inverses, scratch):
            failed[i] = 1
            continue
        _solve_for(factor, inverses, count, near, root, diagonal, t0, p0, y, q0, u0)
        if biased:
            _solve_for(factor, inverses, count, near, root, diagonal, t1, p1, y, q1, u1)
            above, below = right, scale * corner[0, 0]
            for t in range(count):
                above += q0[t]
                below += q1[t]
            for c in range(k):
                above -= p1[c] * u0[c]
                below -= p1[c] * u1[c]
            if not below > 0:
                failed[i] = 1
                continue
            bias = above / below
            for c in range(k):
                u0[c] -= bias * u1[c]
        for c in range(k):
            out[i, c] = u0[c]
            u0[c] = out[i, c]
        if biased:
            out[i, k] = bias
            bias = out[i, k]
        # The loss and the residual of the solution as it is stored.
        loss = constant - 2.0 * right * bias
        if biased:
            loss += scale * corner[0, 0] * bias * bias
        for c in range(k):
            residual[c] = p0[c] - diagonal[c] * u0[c] - bias * p1[c]
            loss += (diagonal[c] * u0[c] - 2.0 * p0[c] + 2.0 * bias * p1[c]) * u0[c]
        energy = 0.0
        for t in range(count):
            s = bias
            for c in range(k):
                s += near[t, c] * u0[c]
            error = t0[t] - t1[t] * s
            loss -= (t0[t] + error) * s
            energy += t0[t] * s
            for c in range(k):
                residual[c] += error * near[t, c]
        excess = 0.0
        for c in range(k):
            excess += residual[c] * residual[c] / diagonal[c]
            energy += p0[c] * u0[c]
        if not excess <= excess_allowed * abs(energy):
            failed[i] = 1
            continue
        row_loss[i] = loss


@compiled(nogil=True, fastmath={"contract", "reassoc"})
def _solve_for(factor, inverses, count, near, root, diagonal, t, p, y, q, u):  # type: ignore[no-untyped-def]
    """The q and u of the module's formula, for one right-hand side ``Z^T t + p``."""
    k = len(diagonal)
    for c in range(k):
        u[c] = p[c] / diagonal[c]
    given = p.any()
    for r in range(count):
        s = 0.0
        if given:
            for c in range(k):
                s += near[r, c] * u[c]
        y[r] = t[r] / root[r] - root[r] * s if root[r] > 0 else 0.0
    solve_factored(factor, count, inverses, y)
    for c in range(k):
        u[c] = p[c]
    for r in range(count):
        q[r] = root[r] * y[r]
        for c in range(k):
            u[c] += q[r] * near[r, c]
    for c in range(k):
        u[c] /= diagonal[c]
