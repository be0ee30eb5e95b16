"""The WALS half-step and loss in plain float64 NumPy over the dense matrix: the twin of every kernel.

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
    """

    target: np.ndarray
    weight: np.ndarray
    row_lambda: np.ndarray
    col_lambda: np.ndarray
    bias: bool

    @property
    def transposed(self) -> DenseProblem:
        """The problem with the sides exchanged."""
        return DenseProblem(self.target.T, self.weight.T, self.col_lambda, self.row_lambda, self.bias)


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
    return DenseProblem(
        target,
        weight,
        objective.regularizers(marginals.row_cells, cols),
        objective.regularizers(marginals.col_cells, rows),
        objective.bias == "free",
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
    residual = problem.target - u @ v.T - b[:, None] - c[None, :]
    ridge = problem.row_lambda @ (u * u).sum(1) + problem.col_lambda @ (v * v).sum(1)
    return float((problem.weight * residual**2).sum() + ridge)
