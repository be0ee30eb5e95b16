"""Vectors of new rows for given column factors: the exact half-step, in float64 NumPy, without Spark.

::

    A_i u_i = rhs_i
    A_i     = rho g_i G + sum_observed d_ij z_j z_j^T + lambda_i I,    G = sum_j h_j z_j z_j^T
    rhs_i   = sum_observed ((d_ij + rho g_i h_j) m_ij - d_ij (b_i + c_j)) z_j - rho g_i sum_j h_j (b_i + c_j) z_j

z_j is v_j; with free biases it is (v_j, 1), the last entry of u_i is the bias, without ridge, and b_i is 0 in rhs_i.
The row needs its whole history: cells that are left out count as unobserved, with target 0. Columns are folded in by
the same function, from the row factors and the transposed marginals, where the objective is symmetric.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from wals_spark import schemas
from wals_spark.errors import InputError
from wals_spark.matrix.csr import Csr, sum_by
from wals_spark.objective import Marginals, Objective
from wals_spark.tables import TableStore

ROUNDING = 1e3 * float(np.finfo(np.float64).eps)
"""Of a diagonal entry: without ridge, a pivot as small means that there is no unique solution."""


@dataclass(frozen=True)
class FixedMarginals:
    """What the solution of new rows needs of the marginals of the training.

    Attributes
    ----------
    sums : float64 array of shape (n,)
        Sums c_j of the fixed side.
    cells : int64 array of shape (n,)
        Its observed cells.
    total : float
        D, the sum of all cells.
    observed : int
        N, their number.
    log_mean : float
        See `log_mean`, of the side that is solved.
    """

    sums: np.ndarray
    cells: np.ndarray
    total: float
    observed: int
    log_mean: float

    @classmethod
    def of(cls, marginals: Marginals) -> FixedMarginals:
        """The part of whole marginals, for new rows."""
        return cls(
            marginals.cols,
            marginals.col_cells,
            marginals.total,
            int(marginals.row_cells.sum()),
            log_mean(marginals.rows, marginals.row_cells),
        )

    @property
    def totals(self) -> tuple[float, int]:
        """D and N."""
        return self.total, self.observed


@dataclass(frozen=True)
class _Columns:
    """The fixed side.

    Attributes
    ----------
    z : float64 array of shape (n, K)
        Factors; with free biases a last column of ones, K = k + 1.
    h, c : float64 arrays of shape (n,)
        Popularities and biases.
    gramian : float64 array of shape (K, K)
        G.
    biased, popular : float64 arrays of shape (K,)
        sum_j h_j c_j z_j and sum_j h_j z_j.
    """

    z: np.ndarray
    h: np.ndarray
    c: np.ndarray
    gramian: np.ndarray
    biased: np.ndarray
    popular: np.ndarray


@dataclass(frozen=True)
class _Rows:
    """Targets and weights of the new rows.

    Attributes
    ----------
    indptr, indices : arrays of shapes (r + 1,) and (nnz,)
        Their cells.
    m, d : float64 arrays of shape (nnz,)
        Targets and extra weights.
    g, ridge, b : float64 arrays of shape (r,)
        Popularities, lambda_i and fixed biases.
    """

    indptr: np.ndarray
    indices: np.ndarray
    m: np.ndarray
    d: np.ndarray
    g: np.ndarray
    ridge: np.ndarray
    b: np.ndarray


def fold_in(
    rows: Csr,
    v: np.ndarray,
    objective: Objective,
    marginals: Marginals | FixedMarginals,
    *,
    unit: int = 1,
    c: np.ndarray | None = None,
    ids: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Solve new rows exactly.

    Parameters
    ----------
    rows : Csr of r rows
        Counts (or ratings) of the new rows over the columns of the training, divided by `unit` here. Repeated cells
        are as many observations; sum them where the training did.
    v : array of shape (n, k)
        Column factors, in any gauge whose regularisation is meant: the factors table's with gauge_power 0.5
        is the one in which ``lambda (|U|^2 + |V|^2)`` is least.
    objective : Objective
        Of the training, ``Objective(**manifest.outputs["objective"])``.
    marginals : Marginals or FixedMarginals
        Of the matrix that v was trained on, see `read_marginals`; they give the popularity of the columns, the
        context distribution and the geometric mean that the popularity of the new rows is relative to.
    unit : int
        What a count of 1 is in `rows`.
    c : array of shape (n,), optional
        Column biases, for objectives with free biases; fixed ones are computed from the marginals.
    ids : array of shape (r,), optional
        What a message calls the rows; their numbers otherwise.

    Returns
    -------
    u : float64 array of shape (r, k)
        Zeros for a row without cells.
    b : float64 array of shape (r,)
        Row biases; zeros without biases.

    Raises
    ------
    InputError
        Sizes that do not fit, an objective that has no exact half-step or takes weights from a column, or a row
        without a unique solution.

    References
    ----------
    Y. Hu, Y. Koren, C. Volinsky. Collaborative filtering for implicit feedback datasets. ICDM 2008, section 4: a row's
    solution from the Gramian of all columns and the row's own cells.
    """
    marginals = FixedMarginals.of(marginals) if isinstance(marginals, Marginals) else marginals
    _check(rows, v, objective, marginals)
    columns = _columns(v, objective, marginals, c)
    new = _new_rows(rows, objective, marginals, columns.h, unit)
    k, solved = v.shape[1], np.zeros((len(new.b), v.shape[1] + 1))
    for i in np.flatnonzero(rows.lengths):
        a, rhs = _normal_equations(new, columns, int(i), objective.rho, k)
        try:
            factor = cho_factor(a)
        except np.linalg.LinAlgError:
            factor = None
        bare = new.ridge[i] == 0 and objective.rho * new.g[i] == 0
        if factor is None or (bare and (_pivots(factor[0]) <= ROUNDING * np.diag(a)).any()):
            row = i if ids is None else ids[i]
            raise InputError(f"fold-in: row {row} has no unique solution; it needs more cells or regularisation")
        solved[i, : len(rhs)] = cho_solve(factor, rhs)
    return solved[:, :k], new.b if objective.bias == "fixed" else solved[:, k]


def _pivots(factor: np.ndarray) -> np.ndarray:
    """What is left of every diagonal entry of a matrix in its Cholesky factorisation."""
    return np.square(np.diag(factor))


def _check(rows: Csr, v: np.ndarray, objective: Objective, marginals: FixedMarginals) -> None:
    """Refuse sizes that do not fit and objectives without an exact half-step."""
    n = len(v)
    if len(marginals.sums) != n:
        raise InputError(f"fold-in: {n} column factors, but marginals of {len(marginals.sums)} columns")
    if rows.nnz and int(rows.indices.max()) >= n:
        raise InputError(f"fold-in: a cell has column {int(rows.indices.max())}, expected 0 .. {n - 1}")
    refuse_without_half_step(objective)


def refuse_without_half_step(objective: Objective) -> None:
    """`InputError` for an objective that is not quadratic in a row, or takes weights from a column."""
    if not objective.is_quadratic or objective.weight == "column":
        raise InputError(f"fold-in with the objective {objective.name} is not available; train again with the new rows")


def _columns(v: np.ndarray, objective: Objective, marginals: FixedMarginals, c: np.ndarray | None) -> _Columns:
    """The fixed side with its sums over all columns."""
    n = len(v)
    h = objective.popularity(marginals.sums, marginals.cells)
    if objective.bias == "fixed":
        c = objective.offsets(marginals.sums, marginals.cells, marginals.totals)
    c = np.zeros(n) if c is None else np.asarray(c, np.float64)
    z = (np.hstack([v, np.ones((n, 1))]) if objective.bias == "free" else v).astype(np.float64)
    return _Columns(z, h, c, (z.T * h) @ z, z.T @ (h * c), z.T @ h)


def _new_rows(rows: Csr, objective: Objective, marginals: FixedMarginals, h: np.ndarray, unit: int) -> _Rows:
    """Targets and weights of the cells of new rows, from their sums and the columns' of the training."""
    count = len(rows.indptr) - 1
    number = rows.row_numbers(0, count)
    x = rows.values / unit
    sums = sum_by(number, rows.values, count) / unit
    cells = np.bincount(number[objective.counted(x)], minlength=count)
    g = objective.popularity(sums, cells, marginals.log_mean)
    known = Marginals(sums, marginals.sums, cells, marginals.cells)
    m, d = objective.cells(x, number, rows.indices, known, g, h)
    b = objective.offsets(sums, cells, marginals.totals) if objective.bias == "fixed" else np.zeros(count)
    return _Rows(rows.indptr, rows.indices, m, d, g, objective.regularizers(cells, len(marginals.sums)), b)


def _normal_equations(rows: _Rows, columns: _Columns, i: int, rho: float, k: int) -> tuple[np.ndarray, np.ndarray]:
    """A_i and rhs_i, of shapes (K, K) and (K,)."""
    part = slice(rows.indptr[i], rows.indptr[i + 1])
    j, m, d, b = rows.indices[part], rows.m[part], rows.d[part], rows.b[i]
    z, scale = columns.z[j], rho * rows.g[i]  # z: (n_i, K)
    a = scale * columns.gramian + (z.T * d) @ z
    a[np.arange(k), np.arange(k)] += rows.ridge[i]
    rhs = z.T @ ((d + scale * columns.h[j]) * m - d * (columns.c[j] + b))
    return a, rhs - scale * (columns.biased + b * columns.popular)


def log_mean(sums: np.ndarray, cells: np.ndarray) -> float:
    """Logarithm of the geometric mean of the sums of filled rows; 0 where one is not positive, and none needs it."""
    filled = sums[cells > 0]
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
        What a count of 1 is in the table.

    Returns
    -------
    Marginals
    """
    rows, cols = np.zeros(size, np.int64), np.zeros(size, np.int64)
    for batch in batches:
        for data_file in tables.files(schemas.MARGINALS, {"batch_id": batch}):
            part = data_file.read(["token_id", "row_units", "col_units"])
            ids = part["token_id"].to_numpy()
            np.add.at(rows, ids, part["row_units"].to_numpy())
            np.add.at(cols, ids, part["col_units"].to_numpy())
    return Marginals(rows / unit, cols / unit, (rows > 0).astype(np.int64), (cols > 0).astype(np.int64))
