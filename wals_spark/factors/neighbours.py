"""Nearest neighbours by cosine in Spark: the queries are few and are broadcast to the partitions of the vectors.

Where the vectors fit the driver, `wals_spark.factors.top_k.top_k` gives the same ids; ties go to the smaller id.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from wals_spark import schemas
from wals_spark.errors import InputError
from wals_spark.factors.top_k import merge_top_k, no_answers, top_k
from wals_spark.matrix.list_column import lists_to_matrix

if TYPE_CHECKING:
    import pyarrow as pa

    from wals_spark.tables import TableStore


def nearest_neighbours(
    tables: TableStore, run_id: str, how: str, query_ids: np.ndarray, count: int, *, min_count: int
) -> tuple[np.ndarray, np.ndarray]:
    """`top_k` by cosine over the factors table in Spark; only the answers come to the driver.

    Parameters
    ----------
    tables : TableStore
    run_id : str
    how : {"u", "v", "sum", "concat"}
        See `wals_spark.factors.store.combine`.
    query_ids : int array of shape (q,)
        Token ids; each is excluded from its own answers.
    count : int
        Answers per query.
    min_count : int
        Rarer tokens are no answers.

    Returns
    -------
    ids : int64 array of shape (q, count)
        -1 where there are fewer answers.
    cosine : float32 array of shape (q, count)
        NaN where the id is -1.

    Raises
    ------
    InputError
        A query is not among the factors.
    """
    frame = _vectors(tables, run_id, how)
    queries = _query_vectors(frame, query_ids, run_id)  # (q, k)
    shared = frame.sparkSession.sparkContext.broadcast((queries, np.asarray(query_ids)))

    def search(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        query, own = shared.value
        best_ids, best = no_answers(len(query), count)
        for batch in batches:
            ids, cosine = _search_batch(batch, query, own, count, min_count)
            best_ids, best = merge_top_k(best_ids, best, ids, cosine, count)
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


def _query_vectors(frame: Any, query_ids: np.ndarray, run_id: str) -> np.ndarray:
    """The vectors of the queries, in their order."""
    from pyspark.sql import functions as F

    rows = frame.where(F.col("token_id").isin([int(index) for index in query_ids])).collect()
    by_id = {row["token_id"]: np.asarray(row["vector"], np.float32) for row in rows}
    lost = [int(index) for index in query_ids if int(index) not in by_id]
    if lost:
        raise InputError(f"token ids {lost[:8]} are not among the factors of run {run_id!r}")
    return np.stack([by_id[int(index)] for index in query_ids])


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
        return no_answers(len(queries), 0)
    counts = batch.column("count").to_numpy(zero_copy_only=False)
    matrix = lists_to_matrix(batch.column("vector"))  # (b, k)
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    exclude = np.full(len(queries), -1, np.int64)
    place = np.searchsorted(ids, own)
    here = (place < len(ids)) & (ids[np.minimum(place, len(ids) - 1)] == own)
    exclude[here] = place[here]
    allowed = (counts >= min_count)[order]
    local, cosine = top_k(queries, matrix[order], count, cosine=True, allowed=allowed, exclude=exclude)
    return np.where(local >= 0, ids[local], -1), np.where(local >= 0, cosine, -np.inf).astype(np.float32)
