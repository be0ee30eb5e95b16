"""One shuffle of records: tasks produce (bucket, record), reducers see all records of their buckets.

Nothing crosses the JVM as a row per word or per document: a record is an Arrow table of thousands of them.
These are jobs on RDDs: the JVM only moves bytes, and Spark's SQL engine, which takes seconds to
warm up in a new session, has no part in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


class ShuffleRecord(NamedTuple):
    """A record of a shuffle.

    Attributes
    ----------
    bucket : int
        The reducer that gets it.
    kind : str
        What the payload is.
    payload : bytes
    """

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


def run_shuffle(
    spark: SparkSession,
    tasks: int,
    produce: Callable[[int], Iterable[ShuffleRecord]],
    merge: Callable[[Iterator[ShuffleRecord]], Iterable[ShuffleRecord]],
    partitions: int,
) -> list[ShuffleRecord]:
    """Run ``produce(task)`` for every task, shuffle its records by bucket, and ``merge`` those of each bucket.

    Parameters
    ----------
    spark : SparkSession
    tasks : int
        Number of tasks.
    produce : callable
        Task -> iterable of ShuffleRecord with ``0 <= bucket < partitions``.
    merge : callable
        Iterator of the records of one bucket, from all tasks -> iterable of ShuffleRecord.
    partitions : int
        Number of buckets.

    Returns
    -------
    list of ShuffleRecord
        What `merge` gives for all buckets.

    Notes
    -----
    What is returned passes through the driver: callers keep it to statistics per task and to results that
    fit into the driver's memory.
    """
    records = spark.sparkContext.parallelize(range(tasks), tasks).flatMap(produce)
    buckets = records.keyBy(lambda record: record.bucket).partitionBy(partitions, lambda bucket: bucket)
    return buckets.values().mapPartitions(merge).collect()


def run_tasks(
    spark: SparkSession, tasks: int, produce: Callable[[int], Iterable[ShuffleRecord]]
) -> list[ShuffleRecord]:
    """Run ``produce(task)`` for every task, without a shuffle."""
    return spark.sparkContext.parallelize(range(tasks), tasks).flatMap(produce).collect()
