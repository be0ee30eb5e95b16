"""The distributed part: count in tasks, shuffle packed rows by block, sum and write one block per task.

Spark carries blobs of packed rows; no pair is a row of a DataFrame before the sorted output, and with
Parquet tables none ever is: the merging tasks write the files themselves.
"""

from __future__ import annotations

import json
import posixpath
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wals_spark import schemas, storage
from wals_spark.cooccurrence.merge import BlockMerger, SortedCells, pack_cells
from wals_spark.cooccurrence.semantics import Semantics
from wals_spark.cooccurrence.window import TaskTotals, WindowCounter, context_tokens
from wals_spark.errors import InputError
from wals_spark.heartbeat import Heartbeat
from wals_spark.token_shards import BatchRange, Boundary, TokenChunk, read_batch_ranges

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

PACKED_DDL = "row_block int, `rows` int, payload binary"
PACKED = pa.schema([("row_block", pa.int32()), ("rows", pa.int32()), ("payload", pa.binary())])
TOTALS_ROWS = -1
"""In place of a number of rows: the payload is a task's `TaskTotals`."""
BATCH_BYTES = 8 << 20
"""Bytes of packed rows handed over at a time."""
CELLS_DDL = "row_id int, col_id int, units bigint, row_block int"
WRITTEN_DDL = "row_block int, cells bigint"

WRITE_OPTIONS: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 1,
    "use_dictionary": ["units"],
    "column_encoding": {"row_id": "DELTA_BINARY_PACKED", "col_id": "DELTA_BINARY_PACKED"},
    "write_statistics": True,
}
"""Ids are sorted, so their differences are small; units repeat (most pairs are seen once or twice)."""


@dataclass(frozen=True)
class CountingJob:
    """What every task must know.

    Attributes
    ----------
    semantics : Semantics
    block_of : int32 array of shape (V,)
    memory : int
    counts : int64 array of shape (V,) or None
        For subsampling only.
    scratch : str
        Directory for the facts that merging tasks leave for the driver.
    """

    semantics: Semantics
    block_of: np.ndarray
    memory: int
    scratch: str
    counts: np.ndarray | None = None

    @property
    def size(self) -> int:
        """V."""
        return len(self.block_of)


@dataclass
class BlockFacts:
    """What a merging task leaves for the driver."""

    block: int
    cells: int
    pruned_cells: int
    pruned_units: int
    blobs: int
    spilled_bytes: int
    tasks: list[TaskTotals] = field(default_factory=list)


def packed_frame(spark: SparkSession, job: CountingJob, tasks: Sequence[Sequence[BatchRange]]) -> DataFrame:
    """Count: a DataFrame of packed rows, one partition per task."""
    spans = [list(task) for task in tasks]

    def produce(task: int) -> Iterator[pa.RecordBatch]:
        return _packed_batches(count_spans(job, spans[task], Heartbeat(job.scratch, f"count-{task}")))

    return _frame_of_tasks(spark, len(spans), produce, PACKED_DDL)


def _frame_of_tasks(
    spark: SparkSession, tasks: int, produce: Callable[[int], Iterator[pa.RecordBatch]], ddl: str
) -> DataFrame:
    """What ``produce(task)`` yields for every task, in a partition each."""

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for task in batch.column(0).to_pylist():
                yield from produce(task)

    return spark.range(0, tasks, 1, tasks).mapInArrow(run, ddl)


def count_spans(
    job: CountingJob, spans: Sequence[BatchRange], heartbeat: Heartbeat | None = None
) -> Iterator[tuple[int, int, bytes]]:
    """(block, rows, payload) of all packed rows of a task, then its totals."""
    semantics = job.semantics
    counter = WindowCounter(semantics, job.size, job.block_of, job.memory, job.counts)
    totals = counter.totals
    for blob in counter.count(_chunks(job, spans)):
        yield blob.block, blob.rows, blob.payload
        if heartbeat is not None:
            heartbeat.beat(documents=totals.documents, tokens=counter.counted_tokens, pairs=totals.cells)
    if heartbeat is not None:
        heartbeat.beat(documents=totals.documents, tokens=totals.tokens, pairs=totals.cells, last=True)
    yield 0, TOTALS_ROWS, json.dumps(asdict(counter.totals)).encode()


def _chunks(job: CountingJob, spans: Sequence[BatchRange]) -> Iterator[TokenChunk]:
    boundary: Boundary = job.semantics.boundary  # type: ignore[assignment]  # the configuration allows these three only
    return read_batch_ranges(spans, boundary=boundary, context=context_tokens(job.semantics, job.counts))


@dataclass(frozen=True)
class DirectCounting:
    """Counting without a shuffle: `tasks` tasks read all `spans` and count every tasks-th block each."""

    spans: Sequence[BatchRange]
    tasks: int
    blocks: int


def counted_blocks(job: CountingJob, direct: DirectCounting, task: int) -> Iterator[tuple[int, Iterator[SortedCells]]]:
    """The blocks of a task with their sorted cells; facts and marginals go to the scratch directory."""
    mine = range(task, direct.blocks, direct.tasks)
    semantics = job.semantics
    counter = WindowCounter(semantics, job.size, job.block_of, job.memory, job.counts, only=frozenset(mine))
    heartbeat = Heartbeat(job.scratch, f"count-{task}")
    for number, (block, totals, cells) in enumerate(counter.cells(_chunks(job, direct.spans))):
        yield block, cells
        first = task == 0 and number == 0
        facts = BlockFacts(
            block, totals.cells, totals.pruned_cells, totals.pruned_units, 0, 0, [counter.totals] if first else []
        )
        _leave_facts(job, facts, totals.row_units, totals.col_units)
        share = (number + 1) / len(mine) / direct.tasks
        read = counter.totals
        heartbeat.beat(documents=round(read.documents * share), tokens=round(read.tokens * share), pairs=read.cells)


def write_direct(
    spark: SparkSession, job: CountingJob, direct: DirectCounting, directory: str
) -> list[tuple[int, int]]:
    """Count every block and write it below a directory, see `write_blocks`.

    A job on an RDD: there is no shuffle, and Spark's SQL engine would take longer to warm up than the
    text of a small corpus takes to count.

    Parameters
    ----------
    spark : SparkSession
    job : CountingJob
    direct : DirectCounting
    directory : str

    Returns
    -------
    list of (int, int)
        Blocks and their cells.
    """

    def run(task: int) -> Iterator[tuple[int, int]]:
        for block, cells in counted_blocks(job, direct, task):
            yield block, _write_block(directory, block, cells)

    return spark.sparkContext.parallelize(range(direct.tasks), direct.tasks).flatMap(run).collect()


def direct_cells(spark: SparkSession, job: CountingJob, direct: DirectCounting) -> DataFrame:
    """Count; the sorted cells come back as rows, see `merged_cells`."""

    def produce(task: int) -> Iterator[pa.RecordBatch]:
        for block, cells in counted_blocks(job, direct, task):
            for part in cells:
                yield _cell_batch(block, part)

    return _frame_of_tasks(spark, direct.tasks, produce, CELLS_DDL)


def _packed_batches(blobs: Iterator[tuple[int, int, bytes]]) -> Iterator[pa.RecordBatch]:
    """Arrow batches of about `BATCH_BYTES`."""
    held: list[tuple[int, int, bytes]] = []
    size = 0
    for blob in blobs:
        held.append(blob)
        size += len(blob[2])
        if size >= BATCH_BYTES:
            yield _packed_batch(held)
            held, size = [], 0
    if held:
        yield _packed_batch(held)


def _packed_batch(blobs: list[tuple[int, int, bytes]]) -> pa.RecordBatch:
    blocks, rows, payloads = zip(*blobs, strict=True)
    return pa.RecordBatch.from_arrays(
        [pa.array(blocks, pa.int32()), pa.array(rows, pa.int32()), pa.array(payloads, pa.binary())], schema=PACKED
    )


def repacked_frame(spark: SparkSession, job: CountingJob, paths: Sequence[str]) -> DataFrame:
    """Sorted files of counts as packed rows by `job`'s blocks: one partition per file."""
    files = list(paths)
    return _frame_of_tasks(spark, len(files), lambda task: _packed_batches(repack_file(job, files[task])), PACKED_DDL)


def repack_file(job: CountingJob, path: str) -> Iterator[tuple[int, int, bytes]]:
    """(block, rows, payload) of a sorted file of counts."""
    fs, inner = storage.filesystem(path)
    with fs.open_input_file(inner) as source:
        stored = pq.ParquetFile(source)
        for group in range(stored.num_row_groups):
            table = stored.read_row_group(group)
            rows, cols, units = (table[name].to_numpy() for name in ("row_id", "col_id", "units"))
            block_of = job.block_of[rows]
            order = np.argsort(block_of, kind="stable")
            bounds = np.flatnonzero(np.diff(block_of[order])) + 1
            for part in np.split(order, bounds):
                cells = SortedCells(rows[part], cols[part], units[part])
                for count, payload in pack_cells(cells, BATCH_BYTES):
                    yield int(block_of[part[0]]), count, payload


@contextmanager
def bounded_batches(spark: SparkSession) -> Iterator[None]:
    """Spark hands packed rows to Python in batches by bytes: 10,000 blobs at a time would be gigabytes."""
    key = "spark.sql.execution.arrow.maxBytesPerBatch"
    before = spark.conf.get(key)
    spark.conf.set(key, str(16 << 20))
    try:
        yield
    finally:
        if before is not None:
            spark.conf.set(key, before)


def by_block(frame: DataFrame, blocks: int) -> DataFrame:
    """The shuffle: block b to partition b."""
    from pyspark.sql import functions as F

    return frame.repartitionById(blocks, F.col("row_block"))


def write_blocks(frame: DataFrame, job: CountingJob, directory: str) -> list[tuple[int, int]]:
    """Merge every block and write it below `directory` as a Parquet file; returns blocks and their cells.

    Names and content are the same in every attempt of a task, so a repeated or speculative attempt
    replaces a file by itself.
    """

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        block = _block()
        cells = _write_block(directory, block, _merged(job, block, batches))
        yield pa.RecordBatch.from_pydict({"row_block": [block], "cells": [cells]}, schema=_WRITTEN)

    return [(row.row_block, row.cells) for row in frame.mapInArrow(run, WRITTEN_DDL).collect()]


def _write_block(directory: str, block: int, parts: Iterator[SortedCells]) -> int:
    """Write a block's file; returns its cells."""
    cells = 0
    with cell_writer(storage.join(directory, f"row_block={block}", "part-00000.parquet")) as write:
        for part in parts:
            write(part)
            cells += len(part)
    return cells


_WRITTEN = pa.schema([("row_block", pa.int32()), ("cells", pa.int64())])


def merged_cells(frame: DataFrame, job: CountingJob) -> DataFrame:
    """Merge every block; its sorted cells come back as rows, one partition per block."""

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        block = _block()
        for part in _merged(job, block, batches):
            yield _cell_batch(block, part)

    return frame.mapInArrow(run, CELLS_DDL)


def _cell_batch(block: int, part: SortedCells) -> pa.RecordBatch:
    blocks = pa.array(np.full(len(part), block, np.int32))
    return pa.RecordBatch.from_arrays(
        [pa.array(part.rows), pa.array(part.cols), pa.array(part.units), blocks],
        names=["row_id", "col_id", "units", "row_block"],
    )


def _block() -> int:
    from pyspark import TaskContext

    context = TaskContext.get()
    assert context is not None
    return int(context.partitionId())


def _merged(job: CountingJob, block: int, batches: Iterator[pa.RecordBatch]) -> Iterator[SortedCells]:
    """The sorted cells of a block; its facts and marginals go to the scratch directory."""
    tasks: list[TaskTotals] = []

    def blobs() -> Iterator[tuple[int, bytes]]:
        for batch in batches:
            found = batch.column("row_block").to_numpy()
            assert (found == block).all(), f"blocks {sorted(set(found.tolist()))} in partition {block}"
            payloads = batch.column("payload")
            for index, rows in enumerate(batch.column("rows").to_pylist()):
                payload = payloads[index].as_buffer().to_pybytes()
                if rows == TOTALS_ROWS:
                    tasks.append(TaskTotals(**json.loads(payload)))
                else:
                    yield rows, payload

    merger = BlockMerger(job.semantics, job.size, job.memory)
    totals = merger.totals
    heartbeat = Heartbeat(job.scratch, f"merge-{block}")
    for part in merger.merge(blobs()):
        yield part
        heartbeat.beat(cells=totals.cells)
    heartbeat.beat(cells=totals.cells, last=True)
    facts = BlockFacts(
        block, totals.cells, totals.pruned_cells, totals.pruned_units, totals.blobs, totals.spilled_bytes, tasks
    )
    _leave_facts(job, facts, totals.row_units, totals.col_units)


def _facts_path(scratch: str, block: int) -> str:
    return storage.join(scratch, f"block-{block:05d}.facts")


def _leave_facts(job: CountingJob, facts: BlockFacts, row_units: np.ndarray, col_units: np.ndarray) -> None:
    """Facts, then the marginals of the block: ids and sums that are not zero."""
    parts = []
    for units in (row_units, col_units):
        ids = np.flatnonzero(units)
        parts += [ids.astype(np.int64), units[ids]]
    head = json.dumps({"facts": asdict(facts), "lengths": [len(part) for part in parts]}).encode()
    body = b"".join(part.tobytes() for part in parts)
    storage.write_bytes(_facts_path(job.scratch, facts.block), len(head).to_bytes(8, "little") + head + body)


def collect_facts(job: CountingJob, blocks: int) -> tuple[list[BlockFacts], np.ndarray, np.ndarray]:
    """What the merging tasks left: facts per block, row sums and column sums of shape (V,)."""
    row_units = np.zeros(job.size, np.int64)
    col_units = np.zeros(job.size, np.int64)
    all_facts = []
    for block in range(blocks):
        content = storage.read_bytes(_facts_path(job.scratch, block))
        start = 8 + int.from_bytes(content[:8], "little")
        head = json.loads(content[8:start])
        facts = BlockFacts(**{**head["facts"], "tasks": [TaskTotals(**task) for task in head["facts"]["tasks"]]})
        arrays = np.split(np.frombuffer(content, np.int64, offset=start), np.cumsum(head["lengths"])[:-1])
        row_units[arrays[0]] += arrays[1]
        col_units[arrays[2]] += arrays[3]
        all_facts.append(facts)
    if job.semantics.symmetric:
        col_units = row_units
    elif (col_units < 0).any():
        raise InputError("column sums overflow an int64; set a lower cooccurrence.unit_bits or count smaller batches")
    return all_facts, row_units, col_units


@contextmanager
def cell_writer(path: str) -> Iterator[Any]:
    """Write cells to a Parquet file that appears when it is whole; none appears without cells."""
    fs, target = storage.filesystem(path)
    schema = schemas.COOCCURRENCE.arrow(partitions=False)
    local = storage.is_local(path)
    directory, name = posixpath.split(target)
    temporary = posixpath.join(directory, f"_{name}.{uuid.uuid4().hex[:8]}") if local else target
    writer: pq.ParquetWriter | None = None

    def write(cells: SortedCells) -> None:
        nonlocal writer
        if writer is None:
            fs.create_dir(directory, recursive=True)
            writer = pq.ParquetWriter(temporary, schema, filesystem=fs, **WRITE_OPTIONS)
        writer.write_table(
            pa.Table.from_arrays([pa.array(cells.rows), pa.array(cells.cols), pa.array(cells.units)], schema=schema)
        )

    with storage.explained(f"cannot write {path}"):
        try:
            yield write
            if writer is not None:
                writer.close()
                if local:
                    fs.move(temporary, target)
        except BaseException:
            if writer is not None:
                writer.close()
                if local:
                    fs.delete_file(temporary)
            raise
