"""Reference implementations of the injection mathematics in plain NumPy, a row at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def ridge_reference(
    U: np.ndarray, E: np.ndarray, weight: np.ndarray, regularization: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """W, mu_u, mu_e of `align.ridge`, from the definition."""
    U, E, w = U.astype(np.float64), E.astype(np.float64), weight.astype(np.float64)
    mu_u = sum(w[i] * U[i] for i in range(len(U))) / w.sum()
    mu_e = sum(w[i] * E[i] for i in range(len(E))) / w.sum()
    gram = np.zeros((U.shape[1], U.shape[1]))
    cross = np.zeros((U.shape[1], E.shape[1]))
    for i in range(len(U)):
        gram += w[i] * np.outer(U[i] - mu_u, U[i] - mu_u)
        cross += w[i] * np.outer(U[i] - mu_u, E[i] - mu_e)
    penalty = regularization * np.trace(gram) / len(gram)
    return np.linalg.inv(gram + penalty * np.eye(len(gram))) @ cross, mu_u, mu_e


def cross_validate_reference(
    U: np.ndarray, E: np.ndarray, weight: np.ndarray, fold: np.ndarray, grid: Sequence[float]
) -> tuple[np.ndarray, float]:
    """Held-out weighted error per lambda_0, and that of the training mean, predicting row by row."""
    error, total = np.zeros(len(grid)), 0.0
    for number in np.unique(fold):
        train, held_out = fold != number, np.flatnonzero(fold == number)
        for index, value in enumerate(grid):
            W, mu_u, mu_e = ridge_reference(U[train], E[train], weight[train], value)
            for i in held_out:
                residual = E[i].astype(np.float64) - mu_e - (U[i] - mu_u) @ W
                error[index] += weight[i] * float(residual @ residual)
                if index == 0:
                    total += weight[i] * float((E[i] - mu_e) @ (E[i] - mu_e))
    return error, total


def blend_reference(
    E: np.ndarray,
    P: np.ndarray,
    exposure: np.ndarray,
    counts: np.ndarray,
    halves: tuple[float, float],
    b_max: float,
    protected: set[int],
) -> np.ndarray:
    """The rows of `blend.blend_shares` and `blend.blend_rows`, one at a time; `halves` are h and h_c."""
    h, h_c = halves
    rows = E.astype(np.float64).copy()
    for i in range(len(E)):
        if i in protected or counts[i] <= 0 or h == 0:
            continue
        b = min(h / (h + exposure[i]) * counts[i] / (counts[i] + h_c), b_max)
        rows[i] = (1 - b) * E[i] + b * P[i]
    return rows
