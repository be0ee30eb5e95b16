r"""The sums of the alignment accumulated in Spark, next to the factors, for vocabularies of millions of rows.

A task of ``mapInArrow`` over the factors table gathers, from the checkpoint's mapped file, the embedding rows that its
factor rows are paired with, and emits one `align.Sums` per fold, k (k + d) numbers; the driver adds them. The result is
that of `align.sums_by_fold` up to the order of summation. Every executor must see the checkpoint under its path.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from wals_spark import schemas
from wals_spark.checkpoints.checkpoint import open_checkpoint
from wals_spark.checkpoints.raw_tensor import gather_rows
from wals_spark.inject import align
from wals_spark.inject.gate import FoldSums
from wals_spark.matrix.list_column import lists_to_matrix

if TYPE_CHECKING:
    import pyarrow as pa

    from wals_spark.stage import Context


def fold_sums_in_spark(context: Context, side: str, source: str) -> FoldSums:
    """A function that accumulates the sums of every fold in Spark.

    Parameters
    ----------
    context : Context
        Of the run whose factors are aligned.
    side : {"row", "col"}
        Of the factors.
    source : str
        The checkpoint, under a path that executors see.

    Returns
    -------
    callable
        See `wals_spark.inject.gate.FoldSums`.
    """

    def accumulate(
        u_rows: np.ndarray, e_rows: np.ndarray, weight: np.ndarray, fold: np.ndarray, folds: int
    ) -> list[align.Sums]:
        order = np.argsort(u_rows, kind="stable")
        shared = context.spark.sparkContext.broadcast((u_rows[order], e_rows[order], weight[order], fold[order]))

        def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            rows, others, weights, numbers = shared.value
            yield from _task(batches, rows, others, weights, numbers, folds, source)

        where = {"run_id": context.config.run_id}
        frame = context.tables.read(schemas.FACTORS, where).where(f"side = '{side}'").select("token_id", "vector")
        found: list[align.Sums | None] = [None] * folds
        for row in frame.mapInArrow(task, "fold int, sums binary, k int").toLocalIterator():
            sums = sums_from_bytes(row["sums"], row["k"])
            before = found[row["fold"]]
            found[row["fold"]] = sums if before is None else before + sums
        shared.unpersist()
        assert any(found)
        nothing = next(sums for sums in found if sums is not None)
        nothing = nothing - nothing
        return [nothing if sums is None else sums for sums in found]

    return accumulate


def _task(
    batches: Iterator[pa.RecordBatch],
    u_rows: np.ndarray,
    e_rows: np.ndarray,
    weight: np.ndarray,
    fold: np.ndarray,
    folds: int,
    source: str,
) -> Iterator[pa.RecordBatch]:
    """The sums of a task's factor rows, a record per fold that it has; `u_rows` ascend."""
    import pyarrow as pa

    opened = open_checkpoint(source)
    embedding = opened.tensors[opened.embedding]
    found: dict[int, align.Sums] = {}
    k = 0
    for batch in batches:
        if batch.num_rows == 0:
            continue
        ids = batch.column(0).to_numpy(zero_copy_only=False)
        U = lists_to_matrix(batch.column(1))
        k = U.shape[1]
        place = np.minimum(np.searchsorted(u_rows, ids), len(u_rows) - 1)
        paired = np.flatnonzero(u_rows[place] == ids)
        place = place[paired]
        E = gather_rows(embedding, e_rows[place]).values()
        for number, sums in enumerate(align.sums_by_fold(U, E, weight[place], fold[place], folds, u_rows=paired)):
            found[number] = found[number] + sums if number in found else sums
    columns = [
        pa.array(list(found), pa.int32()),
        pa.array([sums_to_bytes(sums) for sums in found.values()], pa.binary()),
        pa.array([k] * len(found), pa.int32()),
    ]
    yield pa.RecordBatch.from_arrays(columns, ["fold", "sums", "k"])


def sums_to_bytes(sums: align.Sums) -> bytes:
    """All numbers of some sums, float64."""
    scalars = np.array([sums.count, sums.weight, sums.yy])
    return np.concatenate([scalars, sums.x, sums.y, sums.xx.ravel(), sums.xy.ravel()]).tobytes()


def sums_from_bytes(content: bytes, k: int) -> align.Sums:
    """The inverse of `sums_to_bytes`; `k` is the number of factors."""
    values = np.frombuffer(content)
    d = (len(values) - 3 - k - k * k) // (1 + k)
    count, weight, yy = values[:3]
    x, y, xx, xy = np.split(values[3:], np.cumsum([k, d, k * k]))
    return align.Sums(int(count), float(weight), x, y, xx.reshape(k, k), xy.reshape(k, d), float(yy))
