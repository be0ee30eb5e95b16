"""The corpus stage: files -> table ``documents``."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import blake2b
from typing import Any

import numpy as np

from wals_spark import storage
from wals_spark.config import Config, CorpusConfig
from wals_spark.corpus.boilerplate import LineCounter, frequent_lines, remove_lines
from wals_spark.corpus.clean import clean_batch, drop_empty, filter_length
from wals_spark.corpus.document_batch import DocumentBatch
from wals_spark.corpus.duplicate_ids import DuplicateIds, find_duplicates, pack_ids
from wals_spark.corpus.duplicate_texts import merge_text_keys, pack_text_keys
from wals_spark.corpus.listing import LeftOut
from wals_spark.corpus.read import check_records, read_splits
from wals_spark.corpus.shuffle import ShuffleRecord, run_shuffle
from wals_spark.corpus.source import (
    InputSplit,
    SourceFile,
    check_columns,
    estimated_split_bytes,
    estimated_text_bytes,
    file_identities,
    group_splits,
    input_splits,
    list_sources,
)
from wals_spark.corpus.writing import DocumentWriter, WrittenFiles, drop_rows, remove_temporary
from wals_spark.errors import InputError
from wals_spark.heartbeat import Heartbeat, text_progress
from wals_spark.schemas import DOCUMENTS
from wals_spark.stage import Context, Metric, Outcome
from wals_spark.stage_outputs import CorpusOutputs
from wals_spark.tables.base import spark_read_path

logger = logging.getLogger(__name__)

TASK_BYTES = (4 << 20, 96 << 20)
"""Least and most text a task is planned for; between them, two tasks per slot."""


def check_corpus(config: Config) -> None:
    """Raise for what can be known without reading the corpus: paths, formats, columns."""
    files = list_sources(config.corpus)
    check_columns(files, config.corpus)
    check_records(files, config.corpus)


def source_identity(config: Config) -> Any:
    """Paths, sizes and times of the source files."""
    return file_identities(list_sources(config.corpus))


def run_corpus(context: Context) -> Outcome:
    """Read, clean, refuse or drop duplicates, write the batch."""
    config = context.config.corpus
    left_out = LeftOut()
    files = list_sources(config, left_out)
    tasks = plan_ingest_tasks(files, config, context.spark.sparkContext.defaultParallelism)
    where = {"batch_id": config.batch_id}
    with _target(context, where) as (directory, work):
        reducers = min(len(tasks), context.spark.sparkContext.defaultParallelism)
        lines = _boilerplate(context, tasks, reducers, storage.join(work, "lines"))
        job = partial(ingest_task, tasks, config, context.config.seed, directory, work, reducers, lines)
        with text_progress("corpus", work, _planned_bytes(tasks)):
            records = run_shuffle(context.spark, len(tasks), job, partial(_merge_ids, work, config), reducers)
        written = {record.bucket: WrittenFiles.load(record.payload) for record in records if record.kind == "written"}
        counts: Counter[str] = sum((Counter(part.counts) for part in written.values()), Counter())
        duplicates = sum(
            (DuplicateIds.load(record.payload) for record in records if record.kind == "duplicates"), DuplicateIds()
        )
        if duplicates.count:
            if config.duplicate_ids == "refuse":
                raise InputError(duplicates.message())
            counts["duplicate_ids"] = duplicates.count
            drop_rows(context.spark, written, sorted(duplicates.tasks), directory, work)
        if config.duplicate_texts != "keep":
            counts["duplicate_texts"] = _drop_texts(context, written, len(tasks), reducers, directory, work)
        totals = _totals(written)
        if not totals["documents"]:
            raise InputError(_nothing_left(files, counts))
        remove_temporary(directory)
    dropped = {name: number for name, number in sorted(counts.items()) if name in DROPPED and number}
    outputs: CorpusOutputs = {
        "documents": totals["documents"],
        "held_out": totals["held_out"],
        "text_bytes": totals["text_bytes"],
        "files": len(files),
        "dropped": dropped,
        "tables": context.table_output(DOCUMENTS, where),
    }
    numbers = {**counts, **totals, "source_files": len(files), **left_out.counts()}
    metrics = [Metric(name, float(number)) for name, number in sorted(numbers.items())]
    lines = [_summary(totals, dropped), left_out.summary()]
    return Outcome(outputs, metrics, [line for line in lines if line])


def _planned_bytes(tasks: list[list[InputSplit]]) -> int:
    return sum(estimated_split_bytes(split) for task in tasks for split in task)


def _totals(written: dict[int, WrittenFiles]) -> dict[str, int]:
    entries = [entry for part in written.values() for entry in part.files]
    return {name: sum(entry[name] for entry in entries) for name in ("documents", "held_out", "text_bytes")}


def _boilerplate(context: Context, tasks: list[list[InputSplit]], reducers: int, work: str) -> Any:
    """Sorted hashes of the lines to remove; None where none are looked for."""
    least = context.config.corpus.boilerplate_documents
    if least is None:
        return None
    count = partial(_count_lines, tasks, context.config.corpus, work, reducers)
    with text_progress("corpus lines", work, _planned_bytes(tasks)):
        records = run_shuffle(context.spark, len(tasks), count, partial(_merge_lines, least), reducers)
    return np.sort(
        np.concatenate([np.zeros(0, np.uint64), *(np.frombuffer(record.payload, "<u8") for record in records)])
    )


def _count_lines(
    tasks: list[list[InputSplit]], config: CorpusConfig, work: str, reducers: int, task: int
) -> Iterator[ShuffleRecord]:
    counter, counts = LineCounter(), Counter[str]()
    heartbeat = Heartbeat(work, str(task))
    for batch in read_splits(tasks[task], config, counts):
        counter.add(clean_batch(batch, config, counts))
        heartbeat.beat(bytes=counts["bytes_read"], documents=counts["documents_read"])
    yield from counter.records(reducers)


def _merge_lines(least: int, records: Iterator[ShuffleRecord]) -> Iterator[ShuffleRecord]:
    yield ShuffleRecord(
        0, "lines", frequent_lines([record.payload for record in records], least).astype("<u8").tobytes()
    )


def _drop_texts(
    context: Context, written: dict[int, WrittenFiles], tasks: int, reducers: int, directory: str, work: str
) -> int:
    """Drop documents with the text of an earlier one; returns how many."""
    config = context.config.corpus
    same = storage.join(work, "texts")
    search = partial(pack_text_keys, written, directory, same, config, reducers)
    with text_progress("corpus texts", same, _totals(written)["text_bytes"]):
        found = run_shuffle(context.spark, tasks, search, partial(merge_text_keys, same, config), reducers)
    affected = sorted({task for record in found for task in json.loads(record.payload)})
    return drop_rows(context.spark, written, affected, directory, same)


DROPPED = {
    "empty": "empty",
    "too_short": "too short",
    "too_long": "too long",
    "duplicate_texts": "with the text of another",
    "not_utf8_skipped": "not UTF-8",
    "duplicate_ids": "with an id seen before",
    "corrupt_files": "corrupt files",
    "corrupt_row_groups": "corrupt row groups",
    "corrupt_records": "corrupt lines",
}


def _summary(totals: dict[str, int], dropped: dict[str, int]) -> str:
    line = (
        f"{totals['documents']:,} documents, {totals['text_bytes'] / 1e6:,.1f} MB of text, "
        f"{totals['held_out']:,} held out"
    )
    if dropped:
        line += "; left out: " + ", ".join(f"{number:,} {DROPPED[name]}" for name, number in dropped.items())
    return line


def _nothing_left(files: list[SourceFile], counts: Counter[str]) -> str:
    found = ", ".join(f"{number:,} {DROPPED[name]}" for name, number in sorted(counts.items()) if name in DROPPED)
    return (
        f"the corpus is empty: {len(files)} files with {counts['documents_read']:,} documents"
        f"{f' ({found})' if found else ''}; check corpus.path and corpus.text_column"
    )


def plan_ingest_tasks(files: list[SourceFile], config: CorpusConfig, slots: int) -> list[list[InputSplit]]:
    """Input splits of every task."""
    total = sum(estimated_text_bytes(file) for file in files)
    low, high = TASK_BYTES
    target = min(max(total // (2 * slots), low), high)
    splits = input_splits(files, target)
    wanted = config.partitions or max(1, round(total / target))
    return group_splits(splits, wanted)


@contextmanager
def _target(context: Context, where: dict[str, str]) -> Iterator[tuple[str, str]]:
    """A directory that tasks write the slice's files into, published at the end, and a working directory."""
    with (
        context.scratch(f"corpus.{where['batch_id']}") as work,
        context.tables.staged_slice(DOCUMENTS, where) as directory,
    ):
        if directory is not None:
            yield directory, work
        else:
            written = storage.join(work, "documents")
            yield written, work
            frame = context.spark.read.schema(DOCUMENTS.data_ddl).parquet(spark_read_path(written))
            context.tables.replace(DOCUMENTS, frame, where)


def is_held_out(ids: list[str], fraction: float, seed: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Whether each document is kept for evaluation: BLAKE2b(id, key = seed) / 2^64 < fraction.

    Depends on the id and the seed only, so not on order, partitions or the other documents.
    """
    key = seed.to_bytes(8, "little")
    hashes = np.fromiter(
        (int.from_bytes(blake2b(name.encode(), digest_size=8, key=key).digest(), "little") for name in ids),
        np.uint64,
        len(ids),
    )
    return hashes < np.uint64(int(fraction * 2.0**64))


def ingest_task(
    tasks: list[list[InputSplit]],
    config: CorpusConfig,
    seed: int,
    directory: str,
    work: str,
    reducers: int,
    lines: Any,
    task: int,
) -> Iterator[ShuffleRecord]:
    """Read, clean and write the splits of a task.

    Parameters
    ----------
    tasks : list of list of InputSplit
        Splits of every task.
    config : CorpusConfig
    seed : int
        Of `is_held_out`.
    directory : str
        Where the files go.
    work : str
        Where the heartbeat goes.
    reducers : int
        Number of buckets.
    lines : uint64 array or None
        Sorted hashes of the lines to remove; see `boilerplate`.
    task : int
        Number of this task.

    Yields
    ------
    ShuffleRecord
        The ids of the documents by bucket, and one record of what was written.

    Raises
    ------
    InputError
        A file, a record or a document that the configuration refuses.
    """
    counts: Counter[str] = Counter()
    writer = DocumentWriter(directory, f"part-{task:05d}")
    heartbeat = Heartbeat(work, str(task))
    ids: list[str] = []
    with storage.explained(f"cannot write documents to {directory}"):
        for batch in read_splits(tasks[task], config, counts):
            batch = clean_batch(batch, config, counts)  # noqa: PLW2901
            if lines is not None:
                batch = drop_empty(remove_lines(batch, lines, counts), counts)  # noqa: PLW2901
            batch = filter_length(batch, config, counts)  # noqa: PLW2901
            heartbeat.beat(bytes=counts["bytes_read"], documents=counts["documents_read"])
            if not len(batch):
                continue
            _require_lengths(batch)
            writer.write(batch.ids, batch.arrow_text(), is_held_out(batch.ids, config.held_out_fraction, seed))
            if config.id_column is not None:
                ids += batch.ids
        writer.close()
    yield from pack_ids(ids, task, reducers)
    yield ShuffleRecord(
        task % reducers, "written", json.dumps({"task": task, **WrittenFiles(writer.files, counts).__dict__}).encode()
    )


def _require_lengths(batch: DocumentBatch) -> None:
    longest = int(np.argmax(np.diff(batch.offsets)))
    if batch.offsets[longest + 1] - batch.offsets[longest] > np.iinfo(np.int32).max:
        raise InputError(f"{batch.source}: document {batch.ids[longest]!r} is longer than 2 GiB; cut it into several")


def _merge_ids(work: str, config: CorpusConfig, records: Iterator[ShuffleRecord]) -> Iterator[ShuffleRecord]:
    """Pass statistics through, find ids that come twice."""
    tables = []
    for record in records:
        if record.kind == "written":
            content = json.loads(record.payload)
            yield ShuffleRecord(content.pop("task"), "written", json.dumps(content).encode())
        else:
            tables.append(record.payload)
    duplicates = find_duplicates(tables, None if config.duplicate_ids == "refuse" else work)
    if duplicates.count:
        yield ShuffleRecord(0, "duplicates", duplicates.dump())
