r"""Does a predicted row find its own? Precision at 1 under CSLS, on held-out anchors.

CSLS(x, y) = 2 cos(x, y) - r_Y(x) - r_X(y), r = mean cosine to the 10 nearest: it takes back what hubs win
by being near everything (Conneau et al. 2018). A diagnostic, not an objective.
"""

from __future__ import annotations

import numpy as np

NEAREST = 10
QUERIES = 2000


def csls_hits(predicted: np.ndarray, rows: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Whether each query's prediction is nearest to its own row among all rows, bool (q,).

    Parameters
    ----------
    predicted, rows : float32 (n, d), centred
        Prediction and true row of each anchor.
    queries : numbers of the anchors to look up
        Their predictions also stand for all predictions in r_X.
    """
    x, y = _unit(predicted[queries]), _unit(rows)
    cosine = x @ y.T  # (q, n)
    nearest = min(NEAREST, len(queries), len(rows))
    r_x = _mean_of_largest(cosine.T, nearest)  # (n,), of each row among the predictions
    r_y = _mean_of_largest(cosine, nearest)  # (q,), the same for a whole row of the result
    score = 2 * cosine - r_x[None, :] - r_y[:, None]
    return score.argmax(axis=1) == queries


def stratified_queries(strata: np.ndarray, seed: int, count: int = QUERIES) -> np.ndarray:
    """About `count` anchors, as many of each stratum, rising."""
    generator = np.random.default_rng([seed, 16])
    levels = np.unique(strata)
    each = max(1, count // len(levels))
    chosen = [generator.permutation(np.flatnonzero(strata == level))[:each] for level in levels]
    return np.sort(np.concatenate(chosen))


def _unit(matrix: np.ndarray) -> np.ndarray:
    return matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)


def _mean_of_largest(values: np.ndarray, count: int) -> np.ndarray:
    return np.partition(values, values.shape[1] - count, axis=1)[:, -count:].mean(axis=1)
