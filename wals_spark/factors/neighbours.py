"""Nearest neighbours by cosine: cos(a, b) = a.b / (|a| |b|), exact, as a blocked matrix product.

The queries are few and travel to the vectors: `top_k` on the driver where the vectors fit, `distributed`
in Spark where they do not. Both give the same ids; ties go to the smaller id.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from wals_spark import schemas
from wals_spark.errors import InputError
from wals_spark.matrix.list_column import lists_to_matrix

if TYPE_CHECKING:
    import pyarrow as pa

    from wals_spark.tables import TableStore

BLOCK = 65_536


def normalise(matrix: np.ndarray) -> np.ndarray:
    """Rows divided by their norms, fp32; rows of norm 0 stay 0."""
    matrix = np.asarray(matrix, np.float32)
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    return np.divide(matrix, norms, out=np.zeros_like(matrix), where=norms > 0)


def top_k(
    matrix: np.ndarray,
    queries: np.ndarray,
    count: int,
    *,
    allowed: np.ndarray | None = None,
    exclude: np.ndarray | None = None,
    block: int = BLOCK,
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` nearest rows of each query.

    Parameters
    ----------
    matrix : float array of shape (V, k)
    queries : float array of shape (q, k)
    allowed : bool array of shape (V,), optional
        Rows that may be answers. Rows of norm 0 never are.
    exclude : int array of shape (q,), optional
        A row per query that is no answer to it (itself); -1 for none.

    Returns
    -------
    ids : int64 array of shape (q, count)
        Nearest first; -1 where there are fewer than `count` answers.
    cosine : float32 array of shape (q, count)
        NaN where the id is -1.
    """
    unit_queries = normalise(queries)  # (q, k)
    best_ids = np.full((len(queries), count), -1, np.int64)
    best = np.full((len(queries), count), -np.inf, np.float32)
    for start in range(0, len(matrix), block):
        part = normalise(matrix[start : start + block])  # (b, k)
        usable = part.any(axis=1)
        if allowed is not None:
            usable &= allowed[start : start + block]
        cosine = unit_queries @ part.T  # (q, b)
        cosine[:, ~usable] = -np.inf
        if exclude is not None:
            inside = np.nonzero((exclude >= start) & (exclude < start + len(part)))[0]
            cosine[inside, exclude[inside] - start] = -np.inf
        ids = np.broadcast_to(np.arange(start, start + len(part)), cosine.shape)
        best_ids, best = merge(best_ids, best, ids, cosine, count)
    return best_ids, np.where(best_ids >= 0, best, np.nan).astype(np.float32)


def merge(
    ids: np.ndarray, cosine: np.ndarray, more_ids: np.ndarray, more_cosine: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best `count` of two candidate lists per query, by falling cosine, then rising id."""
    if more_cosine.shape[1] > 4 * count:
        worst = -np.partition(-more_cosine, count - 1, axis=1)[:, count - 1 : count]
        width = int((more_cosine >= worst).sum(axis=1).max(initial=0))  # above count only where there are ties
        kept = np.argpartition(-more_cosine, width - 1, axis=1)[:, :width]
        more_ids, more_cosine = np.take_along_axis(more_ids, kept, 1), np.take_along_axis(more_cosine, kept, 1)
    all_ids = np.concatenate([ids, more_ids], axis=1)
    all_cosine = np.concatenate([cosine, more_cosine], axis=1)
    order = np.lexsort((all_ids, -all_cosine), axis=1)[:, :count]
    kept = np.take_along_axis(all_cosine, order, 1)
    return np.where(np.isfinite(kept), np.take_along_axis(all_ids, order, 1), -1), kept


def distributed(
    tables: TableStore, run_id: str, how: str, query_ids: np.ndarray, count: int, *, min_count: int
) -> tuple[np.ndarray, np.ndarray]:
    """`top_k` over the factors table in Spark; only the answers come to the driver.

    Parameters
    ----------
    how : {"u", "v", "sum", "concat"}
        See `wals_spark.factors.store.combine`.
    query_ids : int array of shape (q,)
        Token ids; each is excluded from its own answers.
    min_count : rarer tokens are no answers

    Returns
    -------
    ids, cosine
        As from `top_k`.
    """
    from pyspark.sql import functions as F

    frame = _vectors(tables, run_id, how)
    rows = frame.where(F.col("token_id").isin([int(index) for index in query_ids])).collect()
    by_id = {row["token_id"]: np.asarray(row["vector"], np.float32) for row in rows}
    lost = [int(index) for index in query_ids if int(index) not in by_id]
    if lost:
        raise InputError(f"token ids {lost[:8]} are not among the factors of run {run_id!r}")
    queries = np.stack([by_id[int(index)] for index in query_ids])  # (q, k)
    shared = frame.sparkSession.sparkContext.broadcast((queries, np.asarray(query_ids)))

    def search(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        query, own = shared.value
        best_ids = np.full((len(query), count), -1, np.int64)
        best = np.full((len(query), count), -np.inf, np.float32)
        for batch in batches:
            ids, cosine = _search_batch(batch, query, own, count, min_count)
            best_ids, best = merge(best_ids, best, ids, cosine, count)
        number, place = np.nonzero(best_ids >= 0)
        columns = [number.astype(np.int32), best_ids[number, place], best[number, place]]
        yield pa.RecordBatch.from_arrays([pa.array(column) for column in columns], ["query", "token_id", "cosine"])

    found = frame.mapInArrow(search, "query int, token_id bigint, cosine float").collect()
    answers: list[list[tuple[float, int]]] = [[] for _ in query_ids]
    for row in found:
        answers[row["query"]].append((-row["cosine"], row["token_id"]))
    ids = np.full((len(query_ids), count), -1, np.int64)
    cosine = np.full((len(query_ids), count), np.nan, np.float32)
    for number, candidates in enumerate(answers):
        for place, (negative, token_id) in enumerate(heapq.nsmallest(count, candidates)):
            ids[number, place], cosine[number, place] = token_id, -negative
    shared.unpersist()
    return ids, cosine


def _vectors(tables: TableStore, run_id: str, how: str) -> Any:
    """token_id, count, vector of a run, combined in Spark."""
    from pyspark.sql import functions as F

    frame = tables.read(schemas.FACTORS, {"run_id": run_id}).select("token_id", "count", "vector", "side")
    u = frame.where("side = 'row'").drop("side")
    v = frame.where("side = 'col'").drop("side")
    if how in ("u", "v"):
        return u if how == "u" else v
    right = v.select("token_id", F.col("vector").alias("other"))
    both = u.join(right, "token_id")
    combined = F.zip_with("vector", "other", lambda a, b: a + b) if how == "sum" else F.concat("vector", "other")
    return both.select("token_id", "count", combined.alias("vector"))


def _search_batch(
    batch: pa.RecordBatch, queries: np.ndarray, own: np.ndarray, count: int, min_count: int
) -> tuple[np.ndarray, np.ndarray]:
    ids = batch.column("token_id").to_numpy(zero_copy_only=False).astype(np.int64)
    if len(ids) == 0:
        return np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)
    counts = batch.column("count").to_numpy(zero_copy_only=False)
    matrix = lists_to_matrix(batch.column("vector"))  # (b, k)
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    exclude = np.full(len(queries), -1, np.int64)
    place = np.searchsorted(ids, own)
    here = (place < len(ids)) & (ids[np.minimum(place, len(ids) - 1)] == own)
    exclude[here] = place[here]
    local, cosine = top_k(matrix[order], queries, count, allowed=(counts >= min_count)[order], exclude=exclude)
    return np.where(local >= 0, ids[local], -1), np.where(local >= 0, cosine, -np.inf).astype(np.float32)
