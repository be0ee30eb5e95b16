"""Rows improved a block of coordinates at a time (iALS++), the other coordinates standing still meanwhile.

::

    (D + Z^T W Z)[block, block] delta = (Z^T t + p - A u)[block],   u[block] += delta

in the eigenbasis of the Gramian, where D = rho g_i Lambda + lambda_i I is diagonal. Predictions of the row's cells are
kept up to date, so a row costs ``n k b + k b^2 / 3 + 6 n k`` instead of ``n k^2 + k^3 / 3``. Every block lowers the
loss. The other side stays fixed throughout. Importing this module imports numba.

References
----------
Rendle, Krichene, Zhang and Koren, "iALS++: speeding up matrix factorization with subspace optimization", 2021.
"""

from __future__ import annotations

import numpy as np

from wals_spark.compiled import compiled
from wals_spark.wals.solvers.cache_lines import LINE_BYTES
from wals_spark.wals.solvers.kernels.cholesky import factorise, solve_factored
from wals_spark.wals.solvers.kernels.microkernel import add_line, scale_line
from wals_spark.wals.solvers.kernels.packed_panels import empty_panels, lanes_of, rank_update


@compiled(nogil=True, fastmath={"contract", "reassoc"})
def descend_rows(  # type: ignore[no-untyped-def]  # numba infers the types
    rows, cells, fixed, terms, solution, block, tile
):
    """Improve some rows, from ``solution.x``.

    Parameters
    ----------
    rows : int64 array
    cells : CsrArrays
    fixed : RotatedSide
        Without other coordinates than factors.
    terms : RowTerms
        Its linear term in the eigenbasis; no known coordinates.
    solution : Solution
        Rows in the eigenbasis, as they are; overwritten.
    block : int
        Coordinates of a block.
    tile : int
        Cells that are gathered at once.
    """
    indptr, indices, m, d = cells
    z, h, eigenvalues, _, _, _, rho = fixed
    g, ridge, _, linear_term = terms
    out, row_loss, _ = solution
    k = len(eigenvalues)
    lanes = lanes_of(z)
    most = 0
    for i in rows:
        most = max(most, indptr[i + 1] - indptr[i])
    predicted = np.empty(most, np.float64)
    a, factor = empty_panels(block, block, z), empty_panels(block, block, z)
    panels = (block + lanes - 1) // lanes
    inverses = np.zeros((panels, lanes, lanes), z.dtype)
    scratch = empty_panels(1, lanes, z)
    gathered = empty_panels(block, tile, z)
    right = np.empty(block, np.float64)
    step, partial, single = np.empty(panels * lanes, z.dtype), np.empty(panels * lanes, z.dtype), np.empty(1, z.dtype)
    one = z.dtype.type(1)
    for i in rows:
        start, stop = indptr[i], indptr[i + 1]
        if start == stop:
            out[i, :] = 0
            row_loss[i] = 0.0
            continue
        scale = float(rho) * g[i]
        u = out[i]
        for t in range(start, stop):
            j = indices[t]
            s = one - one
            for c in range(k):
                s += z[j, c] * u[c]
            predicted[t - start] = s
        for first in range(0, k, block):
            width = min(block, k - first)
            a[:] = 0
            if width < block:
                gathered[:] = 0
            for c in range(width):
                diagonal = scale * eigenvalues[first + c] + ridge[i, first + c]
                a[c // lanes, c, c % lanes] = diagonal
                right[c] = (linear_term[i, first + c] if len(linear_term) else 0.0) - diagonal * u[first + c]
            whole = width // lanes
            for begin in range(start, stop, tile):
                end = min(begin + tile, stop)
                front, back = 0, tile
                partial[:] = 0
                for t in range(begin, end):
                    j = indices[t]
                    if d[t] >= 0:
                        at = front
                        front += 1
                    else:
                        back -= 1
                        at = back
                    root = np.sqrt(abs(d[t]))
                    single[0] = (d[t] + scale * h[j]) * m[t] - d[t] * predicted[t - start]
                    error = single[0]
                    source = z.ctypes.data + j * z.strides[0] + first * z.itemsize
                    target = gathered.ctypes.data + at * LINE_BYTES
                    for q in range(whole):
                        add_line(partial.ctypes.data + q * LINE_BYTES, source + q * LINE_BYTES, error)
                        scale_line(target + q * gathered.strides[0], source + q * LINE_BYTES, root)
                    for c in range(whole * lanes, width):
                        partial[c] += error * z[j, first + c]
                        gathered[whole, at, c - whole * lanes] = root * z[j, first + c]
                for c in range(width):
                    right[c] += partial[c]
                if front > 0:
                    rank_update(gathered, width, 0, front, a, one)
                if back < tile:
                    rank_update(gathered, width, back, tile - back, a, -one)
            for c in range(width):
                step[c] = right[c]
            if not factorise(a, width, factor, inverses, scratch):
                continue
            solve_factored(factor, width, inverses, step)
            for c in range(width):
                old = u[first + c]
                u[first + c] = old + step[c]
                step[c] = u[first + c] - old
            for t in range(start, stop):
                j = indices[t]
                s = one - one
                for c in range(width):
                    s += z[j, first + c] * step[c]
                predicted[t - start] += s
        loss = 0.0
        for t in range(start, stop):
            s = predicted[t - start]
            coefficient = (d[t] + scale * h[indices[t]]) * m[t]
            loss += coefficient * (m[t] - 2.0 * s) + d[t] * s * s
        for c in range(k):
            diagonal = scale * eigenvalues[c] + ridge[i, c]
            loss += (diagonal * u[c] - 2.0 * (linear_term[i, c] if len(linear_term) else 0.0)) * u[c]
        row_loss[i] = loss
