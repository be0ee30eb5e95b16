r"""Precision at 1 of predicted rows under CSLS, on held-out anchors.

::

    CSLS(x, y) = 2 cos(x, y) - r_Y(x) - r_X(y) ,    r: mean cosine to the 10 nearest

Subtracting r corrects for hubs, rows that are near everything. A diagnostic, not an objective.

References
----------
A. Conneau, G. Lample, M. Ranzato, L. Denoyer, H. Jégou, "Word translation without parallel data", ICLR 2018.
"""

from __future__ import annotations

import numpy as np

NEAREST = 10
QUERIES = 1000
_CHUNK = 4096


def csls_hits(
    predicted: np.ndarray,
    E: np.ndarray,
    queries: np.ndarray,
    means: np.ndarray,
    fold: np.ndarray,
    rows: np.ndarray | None = None,
) -> np.ndarray:
    """Whether each query's prediction is nearest to its own row among the rows of all anchors.

    Parameters
    ----------
    predicted : float32 array of shape (q, d)
        Predictions of the queries; they also stand for all predictions in r_X.
    E : float32 array of shape (V, d)
    queries : int64 array of shape (q,)
        Numbers of the anchors to find, of n.
    means : float32 array of shape (folds, d)
        Subtracted from predictions and rows of each fold.
    fold : int array of shape (n,)
        Of each anchor.
    rows : int64 array of shape (n,), optional
        Row of E of each anchor; none = the first n.

    Returns
    -------
    bool array of shape (q,)
    """
    x = _unit(predicted - means[fold[queries]])
    nearest = min(NEAREST, len(queries))
    best, winner = np.full(len(queries), -np.inf, np.float32), np.zeros(len(queries), np.int64)
    for begin in range(0, len(fold), _CHUNK):
        part = slice(begin, min(begin + _CHUNK, len(fold)))
        cosine = _unit(E[part if rows is None else rows[part]] - means[fold[part]]) @ x.T  # (chunk, q)
        r_x = np.partition(cosine, len(queries) - nearest, axis=1)[:, -nearest:].mean(axis=1)  # (chunk,)
        score = 2 * cosine - r_x[:, None]  # r_Y is the same for all rows: it does not change which is largest
        place = score.argmax(axis=0)
        value = score[place, np.arange(len(queries))]
        better = value > best
        best[better], winner[better] = value[better], begin + place[better]
    return winner == queries


def stratified_queries(strata: np.ndarray, seed: int, count: int = QUERIES) -> np.ndarray:
    """Numbers of about `count` anchors, equally many of each stratum, ascending, int64 (q,)."""
    generator = np.random.default_rng([seed, 16])
    levels = np.unique(strata)
    each = max(1, count // len(levels))
    chosen = [generator.permutation(np.flatnonzero(strata == level))[:each] for level in levels]
    return np.sort(np.concatenate(chosen))


def _unit(matrix: np.ndarray) -> np.ndarray:
    return matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)
