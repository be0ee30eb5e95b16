"""The k largest products of each of some vectors with many, exact: blocks of a matrix product and a partial sort."""

from __future__ import annotations

import numpy as np

BLOCK = 65_536
"""Items multiplied at once: memory is queries x (block + count) numbers."""


def unit_rows(matrix: np.ndarray) -> np.ndarray:
    """Rows divided by their norms, float32; rows of norm 0 stay 0."""
    matrix = np.asarray(matrix, np.float32)
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    return np.divide(matrix, norms, out=np.zeros_like(matrix), where=norms > 0)


def top_k(
    queries: np.ndarray,
    items: np.ndarray,
    count: int,
    *,
    cosine: bool = False,
    allowed: np.ndarray | None = None,
    exclude: np.ndarray | None = None,
    block: int = BLOCK,
) -> tuple[np.ndarray, np.ndarray]:
    """``q.v`` of each query q with its `count` items v of the largest, or ``q.v / (|q| |v|)`` with ``cosine``.

    Parameters
    ----------
    queries : float array of shape (q, k)
    items : float array of shape (n, k)
    count : int
    cosine : bool
        Compare by cosine; items of norm 0 are no answers.
    allowed : bool array of shape (n,) or None
        Items that may be answers; None allows all.
    exclude : int array of shape (q,) or None
        For each query an item that is no answer to it (itself); -1 for none.
    block : int
        Items multiplied at once.

    Returns
    -------
    ids : int64 array of shape (q, count)
        Positions in `items`, largest product first; of equal products the smaller position comes first. -1 where
        there are fewer than `count` answers.
    products : float32 array of shape (q, count)
        NaN where the id is -1.
    """
    queries = unit_rows(queries) if cosine else np.asarray(queries, np.float32)  # (q, k)
    best_ids, best = no_answers(len(queries), count)
    for start in range(0, len(items), block):
        part = items[start : start + block]  # (b, k)
        part = unit_rows(part) if cosine else np.asarray(part, np.float32)
        products = queries @ part.T  # (q, b)
        if cosine:
            products[:, ~part.any(axis=1)] = -np.inf
        if allowed is not None:
            products[:, ~allowed[start : start + block]] = -np.inf
        if exclude is not None:
            inside = np.nonzero((exclude >= start) & (exclude < start + len(part)))[0]
            products[inside, exclude[inside] - start] = -np.inf
        ids = np.broadcast_to(np.arange(start, start + len(part)), products.shape)
        best_ids, best = merge_top_k(best_ids, best, ids, products, count)
    return best_ids, np.where(best_ids >= 0, best, np.nan).astype(np.float32)


def no_answers(queries: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids -1 and products -inf of shape (queries, count): what `merge_top_k` starts from."""
    return np.full((queries, count), -1, np.int64), np.full((queries, count), -np.inf, np.float32)


def merge_top_k(
    ids: np.ndarray, products: np.ndarray, more_ids: np.ndarray, more_products: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best `count` of two candidate lists per query, by falling product, then rising id.

    Parameters
    ----------
    ids : int64 array of shape (q, a)
    products : float32 array of shape (q, a)
        -inf where there is no candidate.
    more_ids : int64 array of shape (q, b)
    more_products : float32 array of shape (q, b)
    count : int

    Returns
    -------
    ids : int64 array of shape (q, min(count, a + b))
        -1 where the product is -inf.
    products : float32 array of the same shape
    """
    if more_products.shape[1] > 4 * count:
        kept = _largest(more_products, count)
        more_ids, more_products = np.take_along_axis(more_ids, kept, 1), np.take_along_axis(more_products, kept, 1)
    all_ids = np.concatenate([ids, more_ids], axis=1)
    all_products = np.concatenate([products, more_products], axis=1)
    order = np.lexsort((all_ids, -all_products), axis=1)[:, :count]
    best = np.take_along_axis(all_products, order, 1)
    return np.where(best > -np.inf, np.take_along_axis(all_ids, order, 1), -1), best


def _largest(products: np.ndarray, count: int) -> np.ndarray:
    """Positions of the `count` largest of each row and of all that equal the last of them, in no order."""
    negative = -products
    kept = np.argpartition(negative, count - 1, axis=1)
    last = np.take_along_axis(products, kept[:, count - 1 : count], 1)
    width = int((products >= last).sum(axis=1).max(initial=0))
    if width > count:  # ties at the border
        kept = np.argpartition(negative, width - 1, axis=1)
    return kept[:, : max(count, width)]
