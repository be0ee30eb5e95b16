r"""Rows fitted to hidden states, written plainly: the whole objective, its gradient, and Newton's method in float64.

::

    J(D) = - sum_t log softmax(W0 x_t + D x_t)[y_t] + ridge/2 |D|^2

The Hessian is built whole, (A k) x (A k), so only small cases can be solved.
"""

from __future__ import annotations

import numpy as np


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities along the last axis, float64."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def target_losses(W: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """-log p(y_t) of every position, float64 (n,)."""
    return -log_softmax(x @ W.T)[np.arange(len(y)), y]


def objective(D: np.ndarray, W0: np.ndarray, x: np.ndarray, y: np.ndarray, ridge: float) -> float:
    """J(D)."""
    return float(target_losses(W0 + D, x, y).sum() + 0.5 * ridge * (D * D).sum())


def gradient(D: np.ndarray, W0: np.ndarray, x: np.ndarray, y: np.ndarray, ridge: float) -> np.ndarray:
    """dJ/dD, float64 (V, k)."""
    residual = np.exp(log_softmax(x @ (W0 + D).T))  # (n, V)
    residual[np.arange(len(y)), y] -= 1
    return residual.T @ x + ridge * D


def hessian(D: np.ndarray, W0: np.ndarray, x: np.ndarray, ridge: float) -> np.ndarray:
    """d2J/dD2, float64 (V k, V k)."""
    p = np.exp(log_softmax(x @ (W0 + D).T))
    V, k = D.shape
    found = np.zeros((V, k, V, k))
    for v in range(V):
        for u in range(V):
            weight = p[:, v] * ((v == u) - p[:, u])
            found[v, :, u, :] = (x * weight[:, None]).T @ x
    return found.reshape(V * k, V * k) + ridge * np.eye(V * k)


def minimise(
    W0: np.ndarray, x: np.ndarray, y: np.ndarray, ridge: float, movable: np.ndarray | None = None, steps: int = 100
) -> np.ndarray:
    """The minimiser of J by Newton's method with step halving, rows that are not `movable` kept at zero, (V, k)."""
    D = np.zeros_like(W0, dtype=np.float64)
    free = np.ones(len(W0), bool) if movable is None else np.isin(np.arange(len(W0)), movable)
    entries = np.repeat(free, W0.shape[1])
    value = objective(D, W0, x, y, ridge)
    for _ in range(steps):
        g = gradient(D, W0, x, y, ridge).ravel()[entries]
        if not len(g) or np.abs(g).max() < 1e-9:
            break
        step = np.zeros(D.size)
        step[entries] = -np.linalg.solve(hessian(D, W0, x, ridge)[np.ix_(entries, entries)], g)
        step = step.reshape(D.shape)
        t = 1.0
        while t > 1e-12 and objective(D + t * step, W0, x, y, ridge) > value:
            t /= 2
        if t <= 1e-12:
            break
        D = D + t * step
        value = objective(D, W0, x, y, ridge)
    return D
