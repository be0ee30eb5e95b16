"""The largest products of some vectors with many: blocks of a matrix product, NumPy only."""

from __future__ import annotations

import numpy as np


def top_products(queries: np.ndarray, items: np.ndarray, count: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """For every query q the `count` items v with the largest ``q.v``, falling.

    Parameters
    ----------
    queries : float32 array of shape (q, k)
    items : float32 array of shape (n, k)
    count : int
    block : int
        Items that are multiplied at once; memory is q x (block + count) numbers.

    Returns
    -------
    numbers : int64 array of shape (q, min(count, n))
        Positions in `items`; of equal products the smaller position comes first.
    products : float32 array of the same shape
    """
    best = np.empty((len(queries), 0), np.float32)
    where = np.empty((len(queries), 0), np.int64)
    for start in range(0, len(items), block):
        products = queries @ items[start : start + block].T  # (q, block)
        numbers = np.broadcast_to(np.arange(start, start + products.shape[1]), products.shape)
        best = np.hstack([best, products])
        where = np.hstack([where, numbers])
        if best.shape[1] > count:
            kept = np.argpartition(-best, count - 1, axis=1)[:, :count]
            best, where = np.take_along_axis(best, kept, 1), np.take_along_axis(where, kept, 1)
    order = np.lexsort((where, -best), axis=1)
    return np.take_along_axis(where, order, 1), np.take_along_axis(best, order, 1)
