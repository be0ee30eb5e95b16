"""One shuffle of blobs: tasks produce (bucket, blob), reducers see all blobs of their buckets.

Nothing crosses the JVM as a row per word or per document: a blob is an Arrow table of thousands of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


class Blob(NamedTuple):
    """What travels: where it goes, what it is, and its bytes."""

    bucket: int
    kind: str
    payload: bytes


def pack_table(table: pa.Table | pa.RecordBatch) -> bytes:
    """An Arrow table as bytes."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write(table)
    return sink.getvalue().to_pybytes()


def unpack_table(payload: bytes) -> pa.Table:
    """The inverse of `pack_table`."""
    with pa.ipc.open_stream(payload) as reader:
        return reader.read_all()


def exchange(
    spark: SparkSession,
    tasks: int,
    produce: Callable[[int], Iterable[Blob]],
    merge: Callable[[Iterator[Blob]], Iterable[Blob]],
    partitions: int,
) -> list[Blob]:
    """Run ``produce(task)`` for every task, shuffle by bucket, ``merge`` per reducer; returns what merges yield.

    Parameters
    ----------
    produce : callable
        Bucket of a blob: ``0 <= bucket < partitions``.
    merge : callable
        Gets all blobs of one bucket, from all tasks.

    Notes
    -----
    What is returned passes through the driver: callers keep it to statistics per task and to results that
    the driver may hold.
    """

    def map_side(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for task in batch.column(0).to_pylist():
                for blob in produce(task):
                    yield _row(blob, ("bucket", "kind", "payload"))

    def reduce_side(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for blob in merge(_blobs(batches)):
            yield _row(blob, ("bucket", "kind", "payload"))

    schema = "bucket int, kind string, payload binary"
    frame = spark.range(0, tasks, 1, tasks).mapInArrow(map_side, schema)
    frame = frame.repartitionById(partitions, "bucket").mapInArrow(reduce_side, schema)
    return [Blob(row.bucket, row.kind, bytes(row.payload)) for row in frame.collect()]


def run_tasks(spark: SparkSession, tasks: int, produce: Callable[[int], Iterable[Blob]]) -> list[Blob]:
    """Run ``produce(task)`` for every task, without a shuffle."""

    def map_side(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for task in batch.column(0).to_pylist():
                for blob in produce(task):
                    yield _row(blob, ("bucket", "kind", "payload"))

    frame = spark.range(0, tasks, 1, tasks).mapInArrow(map_side, "bucket int, kind string, payload binary")
    return [Blob(row.bucket, row.kind, bytes(row.payload)) for row in frame.collect()]


def _row(blob: Blob, names: tuple[str, ...]) -> pa.RecordBatch:
    columns = [pa.array([blob.bucket], pa.int32()), pa.array([blob.kind]), pa.array([blob.payload], pa.binary())]
    return pa.RecordBatch.from_arrays(columns, names=list(names))


def _blobs(batches: Iterator[pa.RecordBatch]) -> Iterator[Blob]:
    for batch in batches:
        for index in range(len(batch)):
            bucket, kind, payload = (batch.column(name)[index].as_py() for name in ("bucket", "kind", "payload"))
            yield Blob(bucket, kind, payload)
