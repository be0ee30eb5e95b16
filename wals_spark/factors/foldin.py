"""Vectors of new rows for given column factors: the exact half-step, in float64 NumPy, without Spark.

::

    (rho g_i G + sum_j d_ij z_j z_j^T + lambda_i I) u_i = sum_j (d_ij + rho g_i h_j) m_ij z_j - rho g_i q,
    G = sum_j h_j v_j v_j^T

The row needs its whole history: cells that are left out count as unobserved, with target 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from wals_spark import schemas
from wals_spark.errors import InputError
from wals_spark.matrix.csr import Csr, sum_by
from wals_spark.objective import Marginals, Objective
from wals_spark.tables import TableStore


def fold_in(
    rows: Csr,
    v: np.ndarray,
    objective: Objective,
    marginals: Marginals,
    *,
    unit: int = 1,
    c: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Solve new rows exactly.

    Parameters
    ----------
    rows : Csr of r rows
        Counts (or ratings) of the new rows over the columns of the training, divided by `unit` here.
    v : array of shape (n, k)
        Column factors, in any gauge whose regularisation is meant: the factors table's with gauge_power 0.5
        is the one in which ``lambda (|U|^2 + |V|^2)`` is least.
    objective : Objective
        Of the training, ``Objective(**manifest.outputs["objective"])``.
    marginals : Marginals
        Of the matrix that v was trained on, see `read_marginals`; they give the popularity of the columns, the
        context distribution and the geometric mean that the popularity of the new rows is relative to.
    unit : int
    c : array of shape (n,), optional
        Column biases, for objectives with biases.

    Returns
    -------
    u : float64 array of shape (r, k)
        Zeros for a row without cells.
    b : float64 array of shape (r,)
        Row biases; zeros without biases.

    Raises
    ------
    InputError
        Sizes that do not fit, or a row without a unique solution.
    """
    n, k = v.shape
    if len(marginals.cols) != n:
        raise InputError(f"fold-in: {n} column factors, but marginals of {len(marginals.cols)} columns")
    if rows.nnz and int(rows.indices.max()) >= n:
        raise InputError(f"fold-in: a cell has column {int(rows.indices.max())}, expected 0 .. {n - 1}")
    if not objective.is_quadratic or objective.weight == "column":
        raise InputError(f"fold-in with the objective {objective.name} is not available; train again with the new rows")
    biased = objective.bias == "free"
    offset = np.zeros(n) if c is None else np.asarray(c, np.float64)
    fixed = np.zeros(len(rows.indptr) - 1)
    z = np.hstack([v, np.ones((n, 1))]).astype(np.float64) if biased else v.astype(np.float64)  # (n, K)
    count = len(rows.indptr) - 1
    number = rows.row_numbers(0, count)
    x = rows.values / unit
    sums = sum_by(number, rows.values, count) / unit
    cells = np.bincount(number[objective.counted(x)], minlength=count)
    g = objective.popularity(sums, cells, _log_mean(marginals))
    h = objective.popularity(marginals.cols, marginals.col_cells)
    known = Marginals(sums, marginals.cols, cells, marginals.col_cells)
    m, d = objective.cells(x, number, rows.indices, known, g, h)
    ridge = objective.regularizers(cells, n)
    if objective.bias == "fixed":
        totals = (marginals.total, int(marginals.row_cells.sum()))
        fixed = objective.offsets(sums, cells, totals)
        offset = objective.offsets(marginals.cols, marginals.col_cells, totals)
    gramian = (z.T * h) @ z  # (K, K)
    pull, popular = z.T @ (h * offset), z.T @ h  # (K,)
    solved = np.zeros((count, k + 1))
    for i in np.flatnonzero(cells):
        part = slice(rows.indptr[i], rows.indptr[i + 1])
        j = rows.indices[part]
        near = z[j]  # (n_i, K)
        scale = objective.rho * g[i]
        a = scale * gramian + (near.T * d[part]) @ near
        a[np.arange(k), np.arange(k)] += ridge[i]
        rhs = near.T @ ((d[part] + scale * h[j]) * m[part] - d[part] * (offset[j] + fixed[i]))
        rhs -= scale * (pull + fixed[i] * popular)
        try:
            solved[i, : z.shape[1]] = cho_solve(cho_factor(a), rhs)
        except np.linalg.LinAlgError:
            raise InputError(
                f"fold-in: row {i} has no unique solution; it needs more cells or regularisation"
            ) from None
    return solved[:, :k], fixed if objective.bias == "fixed" else solved[:, k]


def _log_mean(marginals: Marginals) -> float:
    filled = marginals.rows[marginals.row_cells > 0]
    return float(np.log(filled).mean()) if len(filled) and (filled > 0).all() else 0.0


def read_marginals(tables: TableStore, batches: Sequence[str], size: int, unit: int) -> Marginals:
    """The marginals of the sum of some batches; a row or column with a positive sum counts as filled.

    Parameters
    ----------
    tables : TableStore
    batches : sequence of str
        ``manifest.outputs["batches"]`` of the train stage.
    size : int
        Tokens of the vocabulary.
    unit : int
    """
    rows, cols = np.zeros(size, np.int64), np.zeros(size, np.int64)
    for batch in batches:
        for data_file in tables.files(schemas.MARGINALS, {"batch_id": batch}):
            part = data_file.read(["token_id", "row_units", "col_units"])
            ids = part["token_id"].to_numpy()
            np.add.at(rows, ids, part["row_units"].to_numpy())
            np.add.at(cols, ids, part["col_units"].to_numpy())
    return Marginals(rows / unit, cols / unit, (rows > 0).astype(np.int64), (cols > 0).astype(np.int64))
