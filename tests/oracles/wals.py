"""Half-steps and losses of every objective in plain float64 NumPy over the dense matrix.

::

    A_i u_i = rhs_i,   A_i = sum_j w_ij z_j z_j^T + lambda_i I,   rhs_i = sum_j w_ij m_ij z_j

over *all* cells, an unobserved one having w_ij = rho g_i h_j and m_ij = 0. Memory is m x n; for tests only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wals_spark.objective import Marginals, Objective


@dataclass(frozen=True)
class DenseProblem:
    """Targets and weights of every cell.

    Attributes
    ----------
    target, weight : float64 arrays of shape (m, n)
    row_lambda, col_lambda : float64 arrays of shapes (m,) and (n,)
    bias : bool
        Whether biases are solved for.
    offset : float64 array of shape (m, n), optional
        What the marginals add to the predictions: fixed biases, or for the softplus the PMI of a single count, negated.
    softplus : bool array of shape (m, n), optional
        Cells whose loss is ``ln(1 + exp(s + offset))`` in place of a square; their weight is that of its upper bound.
    """

    target: np.ndarray
    weight: np.ndarray
    row_lambda: np.ndarray
    col_lambda: np.ndarray
    bias: bool
    offset: np.ndarray | None = None
    softplus: np.ndarray | None = None

    @property
    def transposed(self) -> DenseProblem:
        """The problem with the sides swapped."""
        offset = None if self.offset is None else self.offset.T
        softplus = None if self.softplus is None else self.softplus.T
        return DenseProblem(self.target.T, self.weight.T, self.col_lambda, self.row_lambda, self.bias, offset, softplus)


def marginals_of(counts: np.ndarray, objective: Objective) -> Marginals:
    """Sums and numbers of non-zero cells of a dense matrix."""
    counted = (counts != 0) & objective.counted(counts.reshape(-1)).reshape(counts.shape)
    return Marginals(counts.sum(1), counts.sum(0), counted.sum(1), counted.sum(0))


def dense_problem(objective: Objective, counts: np.ndarray) -> DenseProblem:
    """Targets and weights of a dense matrix whose zeros are the unobserved cells."""
    marginals = marginals_of(counts, objective)
    g = objective.popularity(marginals.rows, marginals.row_cells)
    h = objective.popularity(marginals.cols, marginals.col_cells)
    weight = objective.rho * np.outer(g, h)
    target = np.zeros_like(weight)
    row, col = np.nonzero(counts)
    m, d = objective.cells(counts[row, col].astype(np.float64), row, col, marginals, g, h)
    target[row, col] = m
    weight[row, col] += d
    rows, cols = counts.shape
    offset, softplus = None, None
    if objective.bias == "fixed" or objective.unobserved == "softplus":
        totals = (marginals.total, int(marginals.row_cells.sum()))
        b = objective.offsets(marginals.rows, marginals.row_cells, totals)
        c = objective.offsets(marginals.cols, marginals.col_cells, totals)
        offset = b[:, None] + c[None, :]
    if objective.unobserved == "softplus":
        softplus = (counts == 0) & (g[:, None] * h[None, :] > 0)
    elif offset is not None:
        target, offset = target - offset, None
    return DenseProblem(
        target,
        weight,
        objective.regularizers(marginals.row_cells, cols),
        objective.regularizers(marginals.col_cells, rows),
        objective.bias == "free",
        offset,
        softplus,
    )


def half_step(problem: DenseProblem, v: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Minimise over the rows for given columns.

    Parameters
    ----------
    problem : DenseProblem
    v : array of shape (n, k)
    c : array of shape (n,), the column biases

    Returns
    -------
    u : float64 array of shape (m, k)
    b : float64 array of shape (m,), zeros without biases
    """
    rows, k = problem.weight.shape[0], v.shape[1]
    z = np.hstack([v, np.ones((len(v), 1))]) if problem.bias else v  # (n, k + 1) or (n, k)
    solution = np.zeros((rows, k + 1))
    for i in range(rows):
        w = problem.weight[i]
        if not (w * problem.target[i]).any() and not problem.bias:
            continue
        if not w.any():
            continue
        ridge = np.full(z.shape[1], problem.row_lambda[i])
        ridge[k:] = 0.0
        a = (z.T * w) @ z + np.diag(ridge)
        solution[i, : z.shape[1]] = np.linalg.solve(a, z.T @ (w * (problem.target[i] - c)))
    return solution[:, :k], solution[:, k]


def loss(problem: DenseProblem, u: np.ndarray, v: np.ndarray, b: np.ndarray, c: np.ndarray) -> float:
    """The objective, over every cell."""
    u, v = u.astype(np.float64), v.astype(np.float64)
    s = u @ v.T + b[:, None] + c[None, :]
    losses = problem.weight * (problem.target - s) ** 2
    if problem.softplus is not None:
        losses = np.where(problem.softplus, np.logaddexp(0.0, s + problem.offset), losses)
    ridge = problem.row_lambda @ (u * u).sum(1) + problem.col_lambda @ (v * v).sum(1)
    return float(losses.sum() + ridge)


def softplus_step(problem: DenseProblem, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The rows that minimise the parabolas above the softplus of unobserved cells, which touch it at `u`.

    ``ln(1 + exp x) <= (s - t)^2 / 8 + constant`` with ``t = s0 - 4 sigmoid(x0)``.

    Parameters
    ----------
    problem : DenseProblem
    u, v : arrays of shapes (m, k) and (n, k)

    Returns
    -------
    float64 array of shape (m, k)
    """
    assert problem.softplus is not None
    s = u @ v.T
    bound = s - 4.0 / (1.0 + np.exp(-(s + problem.offset)))
    target = np.where(problem.softplus, bound, problem.target)
    quadratic = DenseProblem(target, problem.weight, problem.row_lambda, problem.col_lambda, False)
    return half_step(quadratic, v, np.zeros(len(v)))[0]


def squared_norm_constant(problem: DenseProblem, u: np.ndarray, v: np.ndarray) -> float:
    """``z = sum w (m - |u_i + v_j|^2) / sum w``."""
    residual = problem.target - _squared_norms(u, v)
    return float((problem.weight * residual).sum() / problem.weight.sum())


def squared_norm_loss(problem: DenseProblem, u: np.ndarray, v: np.ndarray) -> float:
    """``sum w (m - z - |u_i + v_j|^2)^2`` and the ridge, for the best z."""
    residual = problem.target - squared_norm_constant(problem, u, v) - _squared_norms(u, v)
    ridge = problem.row_lambda @ (u * u).sum(1) + problem.col_lambda @ (v * v).sum(1)
    return float((problem.weight * residual**2).sum() + ridge)


def squared_norm_step(problem: DenseProblem, u: np.ndarray, v: np.ndarray, halvings: int = 20) -> np.ndarray:
    """A Gauss-Newton step per row at the best z, halved until the row's loss falls; float64 array of shape (m, k)."""
    z = squared_norm_constant(problem, u, v)
    out = u.astype(np.float64)
    for i, (w, m, ridge) in enumerate(zip(problem.weight, problem.target, problem.row_lambda, strict=True)):
        if not w.any():
            out[i] = 0
            continue

        def row_loss(row: np.ndarray, w: np.ndarray = w, m: np.ndarray = m, ridge: float = ridge) -> float:
            return float(w @ (m - z - ((row + v) ** 2).sum(1)) ** 2 + ridge * (row @ row))

        y = u[i] + v
        e = m - z - (y * y).sum(1)
        a = 4.0 * (y.T * w) @ y + (ridge + max(0.0, -2.0 * float(w @ e))) * np.eye(u.shape[1])
        step = np.linalg.solve(a, 2.0 * y.T @ (w * e) - ridge * u[i])
        shares = (0.5**power for power in range(halvings))
        out[i] = next((u[i] + s * step for s in shares if row_loss(u[i] + s * step) < row_loss(u[i])), u[i])
    return out


def _squared_norms(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return ((u[:, None, :] + v[None, :, :]) ** 2).sum(2)
