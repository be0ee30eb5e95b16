"""The corpus stage: files -> table ``documents``."""

from __future__ import annotations

import json
import logging
import posixpath
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wals_spark import storage
from wals_spark.config import Config, CorpusConfig
from wals_spark.corpus.batch import Batch, from_arrow
from wals_spark.corpus.boilerplate import LineCounter, frequent_lines, remove_lines
from wals_spark.corpus.clean import clean, drop_empty, filter_length
from wals_spark.corpus.duplicates import DuplicateIds, drop_lists, find_duplicates, pack_ids, write_drop_lists
from wals_spark.corpus.exchange import Blob, exchange, pack_table, run_tasks, unpack_table
from wals_spark.corpus.minhash import PERMUTATIONS, band_keys, signatures, similar_to_earlier
from wals_spark.corpus.read import check_records, read_units
from wals_spark.corpus.source import SourceFile, Unit, check_columns, cut, identity, list_sources, pack, text_bytes
from wals_spark.corpus.words import WordIndex
from wals_spark.errors import InputError
from wals_spark.schemas import DOCUMENTS
from wals_spark.stage import Context, Metric, Outcome

logger = logging.getLogger(__name__)

ROW_GROUP_BYTES = 16 << 20
FILE_BYTES = 128 << 20
TASK_BYTES = (4 << 20, 96 << 20)
"""Least and most text a task is planned for; between them, two tasks per slot."""
TEMPORARY = "_tmp-"
WORD = r"\w+"
"""Of the shingles of near-duplicates."""
ROW_BITS = 40


def check(config: Config) -> None:
    """Raise for what can be known without reading the corpus: paths, formats, columns."""
    files = list_sources(config.corpus)
    check_columns(files, config.corpus)
    check_records(files, config.corpus)


def source_identity(config: Config) -> Any:
    """Paths, sizes and times of the source files."""
    return identity(list_sources(config.corpus))


def run(context: Context) -> Outcome:
    """Read, clean, refuse or drop duplicates, write the batch."""
    config = context.config.corpus
    files = list_sources(config)
    tasks = plan(files, config, context.spark.sparkContext.defaultParallelism)
    where = {"batch_id": config.batch_id}
    with _target(context, where) as (directory, work):
        reducers = min(len(tasks), context.spark.sparkContext.defaultParallelism)
        lines = _boilerplate(context, tasks, reducers)
        job = partial(ingest, tasks, config, context.config.seed, directory, reducers, lines)
        blobs = exchange(context.spark, len(tasks), job, partial(_merge_ids, work, config), reducers)
        written = {blob.bucket: Written.load(blob.payload) for blob in blobs if blob.kind == "written"}
        counts: Counter[str] = sum((Counter(part.counts) for part in written.values()), Counter())
        duplicates = sum((DuplicateIds.load(b.payload) for b in blobs if b.kind == "duplicates"), DuplicateIds())
        if duplicates.count:
            if config.duplicate_ids == "refuse":
                raise InputError(duplicates.message())
            counts["duplicate_ids"] = duplicates.count
            _drop(context, written, sorted(duplicates.tasks), directory, work)
        if config.duplicate_texts != "keep":
            same = storage.join(work, "texts")
            search = partial(_similar, written, directory, same, config, reducers)
            found = exchange(context.spark, len(tasks), search, partial(_merge_texts, same, config), reducers)
            affected = sorted({task for blob in found for task in json.loads(blob.payload)})
            counts["duplicate_texts"] = _drop(context, written, affected, directory, same)
        entries = [entry for task in sorted(written) for entry in written[task].files]
        totals = {name: sum(entry[name] for entry in entries) for name in ("documents", "held_out", "text_bytes")}
        if not totals["documents"]:
            raise InputError(_nothing_left(files, counts))
        _remove_temporary(directory)
    outputs = {
        **totals,
        "files": len(files),
        "dropped": {name: number for name, number in sorted(counts.items()) if name in DROPPED and number},
        "tables": context.table_output(DOCUMENTS, where),
    }
    numbers = {**counts, **totals, "source_files": len(files)}
    metrics = [Metric(name, float(number)) for name, number in sorted(numbers.items())]
    return Outcome(outputs, metrics, [_summary(totals, outputs["dropped"])])


def _boilerplate(context: Context, tasks: list[list[Unit]], reducers: int) -> Any:
    """Sorted hashes of the lines to remove; None where none are looked for."""
    least = context.config.corpus.boilerplate_documents
    if least is None:
        return None
    count = partial(_count_lines, tasks, context.config.corpus, reducers)
    blobs = exchange(context.spark, len(tasks), count, partial(_merge_lines, least), reducers)
    return np.sort(np.concatenate([np.zeros(0, np.uint64), *(np.frombuffer(b.payload, "<u8") for b in blobs)]))


def _count_lines(tasks: list[list[Unit]], config: CorpusConfig, reducers: int, task: int) -> Iterator[Blob]:
    counter, counts = LineCounter(), Counter[str]()
    for batch in read_units(tasks[task], config, counts):
        counter.add(clean(batch, config, counts))
    yield from counter.blobs(reducers)


def _merge_lines(least: int, blobs: Iterator[Blob]) -> Iterator[Blob]:
    yield Blob(0, "lines", frequent_lines([blob.payload for blob in blobs], least).astype("<u8").tobytes())


def _drop(context: Context, written: dict[int, Written], affected: list[int], directory: str, work: str) -> int:
    """Write the files of tasks again without the rows of their drop lists; returns how many went."""
    before = sum(entry["documents"] for task in affected for entry in written[task].files)
    rewrite = partial(_without_duplicates, affected, written, directory, work)
    for blob in run_tasks(context.spark, len(affected), rewrite) if affected else ():
        _replace_files(directory, written[blob.bucket], Written.load(blob.payload))
    return before - sum(entry["documents"] for task in affected for entry in written[task].files)


def _similar(
    written: dict[int, Written], directory: str, work: str, config: CorpusConfig, reducers: int, task: int
) -> Iterator[Blob]:
    """Digests of the texts of a task, or the bands of their signatures, by bucket."""
    parts: list[Any] = []
    index = WordIndex(WORD, "lower")
    for entry in written[task].files if task in written else ():
        for batch in _stored(storage.join(directory, entry["name"])):
            if config.duplicate_texts == "near":
                parts.append(signatures(batch, index))
            else:
                texts = (batch.text(place) for place in range(len(batch)))
                parts += [blake2b(text, digest_size=16).hexdigest() for text in texts]
    if not parts:
        return
    if config.duplicate_texts == "exact":
        yield from pack_ids(parts, task, reducers)
        return
    found = np.concatenate(parts)
    storage.write_bytes(storage.join(work, f"signatures-{task:05d}"), found.astype("<u4").tobytes())
    keys = band_keys(found)
    rows = np.broadcast_to(np.arange(len(found))[:, None], keys.shape)
    bucket_of = keys % np.uint64(reducers)
    for bucket in range(reducers):
        chosen = bucket_of == bucket
        columns = {"key": keys[chosen], "row": rows[chosen], "task": np.full(int(chosen.sum()), task)}
        yield Blob(bucket, "bands", pack_table(pa.table(columns)))


def _stored(location: str) -> Iterator[Batch]:
    fs, path = storage.filesystem(location)
    with pq.ParquetFile(path, filesystem=fs) as source:
        for group in range(source.num_row_groups):
            for part in source.read_row_group(group, columns=["doc_id", "text"]).to_batches():
                yield from_arrow(part["doc_id"].to_pylist(), part["text"], location)


def _merge_texts(work: str, config: CorpusConfig, blobs: Iterator[Blob]) -> Iterator[Blob]:
    """Write drop lists of texts that come again; yields the tasks that have some."""
    payloads = [blob.payload for blob in blobs]
    if config.duplicate_texts == "exact":
        yield Blob(0, "tasks", json.dumps(sorted(find_duplicates(payloads, work).tasks)).encode())
    elif payloads:
        table = pa.concat_tables([unpack_table(payload) for payload in payloads])
        positions = table["task"].to_numpy() << ROW_BITS | table["row"].to_numpy()
        fetch = SignatureFiles(work)
        keys = table["key"].to_numpy()
        again = similar_to_earlier(keys, positions, fetch, config.near_duplicate_similarity)
        write_drop_lists(work, again >> ROW_BITS, again & (1 << ROW_BITS) - 1, f"{int(keys.min()):016x}")
        yield Blob(0, "tasks", json.dumps(np.unique(again >> ROW_BITS).tolist()).encode())


class SignatureFiles:
    """Signatures of documents by position, from the files of the tasks; the last ones used stay open."""

    def __init__(self, work: str) -> None:
        self.work = work
        self._load = lru_cache(maxsize=64)(self._read)

    def _read(self, task: int) -> Any:
        path = storage.join(self.work, f"signatures-{task:05d}")
        if storage.is_local(path):
            return np.memmap(storage.local_path(path), "<u4", "r").reshape(-1, PERMUTATIONS)
        return np.frombuffer(storage.read_bytes(path), "<u4").reshape(-1, PERMUTATIONS)

    def __call__(self, positions: Any) -> Any:
        """Signatures, uint32 of shape (len(positions), `PERMUTATIONS`)."""
        return np.stack([self._load(int(at) >> ROW_BITS)[int(at) & (1 << ROW_BITS) - 1] for at in positions])


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


def plan(files: list[SourceFile], config: CorpusConfig, slots: int) -> list[list[Unit]]:
    """Units of every task."""
    total = sum(text_bytes(file) for file in files)
    low, high = TASK_BYTES
    target = min(max(total // (2 * slots), low), high)
    units = cut(files, target)
    wanted = config.partitions or max(1, round(total / target))
    return pack(units, wanted)


@contextmanager
def _target(context: Context, where: dict[str, str]) -> Iterator[tuple[str, str]]:
    """A directory that tasks write the slice's files into, published at the end, and a working directory."""
    work = storage.join(context.manifests.warehouse, "_work", f"corpus-{uuid.uuid4().hex[:16]}")
    try:
        if context.tables.format == "parquet":
            with context.tables.staged(DOCUMENTS, where) as directory:  # type: ignore[attr-defined]
                yield directory, work
        else:
            directory = storage.join(work, "documents")
            yield directory, work
            schema = DOCUMENTS.data_ddl
            context.tables.replace(DOCUMENTS, context.spark.read.schema(schema).parquet(directory), where)
    finally:
        storage.remove(work)


def _remove_temporary(directory: str) -> None:
    for info in storage.list_files(directory):
        if posixpath.basename(info.path).startswith(TEMPORARY):
            storage.remove(storage.join(directory, posixpath.basename(info.path)))


@dataclass
class Written:
    """What a task wrote: an entry per file (name, documents, held_out, text_bytes), and its counts."""

    files: list[dict[str, Any]]
    counts: dict[str, int]

    def dump(self) -> bytes:
        return json.dumps({"files": self.files, "counts": self.counts}).encode()

    @staticmethod
    def load(payload: bytes) -> Written:
        return Written(**json.loads(payload))


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


class DocumentWriter:
    """Writes the documents of a task: row groups of `ROW_GROUP_BYTES`, files of `FILE_BYTES` of text."""

    def __init__(self, directory: str, stem: str) -> None:
        self.directory, self.stem = directory, stem
        self.files: list[dict[str, Any]] = []
        self._schema = DOCUMENTS.arrow(partitions=False)
        self._writer: pq.ParquetWriter | None = None
        self._pending: list[pa.RecordBatch] = []
        self._pending_bytes = 0
        self._temporary = ""

    def write(self, ids: list[str], text: pa.Array, held_out: Any) -> None:
        """Append documents."""
        columns = [pa.array(ids, pa.string()), text.cast(pa.string()), pa.array(held_out, pa.bool_())]
        self._pending.append(pa.RecordBatch.from_arrays(columns, schema=self._schema))
        size = pc.sum(pc.binary_length(text)).as_py() or 0
        self._pending_bytes += size
        if self._writer is None:
            self._open()
        entry = self.files[-1]
        entry["documents"] += len(ids)
        entry["held_out"] += int(np.count_nonzero(held_out))
        entry["text_bytes"] += size
        if self._pending_bytes >= ROW_GROUP_BYTES:
            self._flush()
        if entry["text_bytes"] >= FILE_BYTES:
            self._finish()

    def _open(self) -> None:
        name = f"{self.stem}-{len(self.files):03d}.parquet"
        self._temporary = storage.join(self.directory, f"{TEMPORARY}{uuid.uuid4().hex[:8]}-{name}")
        fs, path = storage.filesystem(self._temporary)
        fs.create_dir(posixpath.dirname(path), recursive=True)
        self._writer = pq.ParquetWriter(
            path, self._schema, filesystem=fs, compression="zstd", use_dictionary=False, write_statistics=False
        )
        self.files.append({"name": name, "documents": 0, "held_out": 0, "text_bytes": 0})

    def _flush(self) -> None:
        if self._pending and self._writer is not None:
            table = pa.Table.from_batches(self._pending)
            self._writer.write_table(table, row_group_size=max(len(table), 1))
        self._pending, self._pending_bytes = [], 0

    def _finish(self) -> None:
        if self._writer is None:
            return
        self._flush()
        self._writer.close()
        self._writer = None
        fs, source = storage.filesystem(self._temporary)
        _, target = storage.filesystem(storage.join(self.directory, self.files[-1]["name"]))
        fs.move(source, target)

    def close(self) -> None:
        """Publish the last file."""
        self._finish()


def ingest(
    tasks: list[list[Unit]],
    config: CorpusConfig,
    seed: int,
    directory: str,
    reducers: int,
    lines: Any,
    task: int,
) -> Iterator[Blob]:
    """Read, clean and write the units of a task; yields its ids by bucket, and what was written."""
    counts: Counter[str] = Counter()
    writer = DocumentWriter(directory, f"part-{task:05d}")
    ids: list[str] = []
    with storage.explained(f"cannot write documents to {directory}"):
        for batch in read_units(tasks[task], config, counts):
            batch = clean(batch, config, counts)  # noqa: PLW2901
            if lines is not None:
                batch = drop_empty(remove_lines(batch, lines, counts), counts)  # noqa: PLW2901
            batch = filter_length(batch, config, counts)  # noqa: PLW2901
            if not len(batch):
                continue
            _require_lengths(batch)
            writer.write(batch.ids, batch.arrow_text(), is_held_out(batch.ids, config.held_out_fraction, seed))
            if config.id_column is not None:
                ids += batch.ids
        writer.close()
    yield from pack_ids(ids, task, reducers)
    yield Blob(
        task % reducers, "written", json.dumps({"task": task, **Written(writer.files, counts).__dict__}).encode()
    )


def _require_lengths(batch: Batch) -> None:
    longest = int(np.argmax(np.diff(batch.offsets)))
    if batch.offsets[longest + 1] - batch.offsets[longest] > np.iinfo(np.int32).max:
        raise InputError(f"{batch.source}: document {batch.ids[longest]!r} is longer than 2 GiB; cut it into several")


def _merge_ids(work: str, config: CorpusConfig, blobs: Iterator[Blob]) -> Iterator[Blob]:
    """Pass statistics through, find ids that come twice."""
    tables = []
    for blob in blobs:
        if blob.kind == "written":
            content = json.loads(blob.payload)
            yield Blob(content.pop("task"), "written", json.dumps(content).encode())
        else:
            tables.append(blob.payload)
    duplicates = find_duplicates(tables, None if config.duplicate_ids == "refuse" else work)
    if duplicates.count:
        yield Blob(0, "duplicates", duplicates.dump())


def _without_duplicates(
    affected: list[int], written: dict[int, Written], directory: str, work: str, index: int
) -> Iterator[Blob]:
    """Write the files of a task again without the rows that its drop lists name."""
    task = affected[index]
    dropped = drop_lists(work, task)
    start = 0
    files: list[dict[str, Any]] = []
    for entry in written[task].files:
        kept = ~np.isin(np.arange(start, start + entry["documents"]), dropped)
        start += entry["documents"]
        files += [entry] if kept.all() else _filtered(directory, entry["name"], kept)
    yield Blob(task, "written", Written(files, {}).dump())


def _filtered(directory: str, name: str, kept: Any) -> list[dict[str, Any]]:
    """Write the rows of a file that are kept beside it; the driver removes the old file."""
    writer = DocumentWriter(directory, name.removesuffix(".parquet"))
    fs, path = storage.filesystem(storage.join(directory, name))
    row = 0
    with pq.ParquetFile(path, filesystem=fs) as source:
        for group in range(source.num_row_groups):
            table = source.read_row_group(group)
            part = table.filter(pa.array(kept[row : row + len(table)]))
            row += len(table)
            for batch in part.to_batches():
                held_out = batch["held_out"].to_numpy(zero_copy_only=False)
                writer.write(batch["doc_id"].to_pylist(), batch["text"], held_out)
    writer.close()
    return writer.files


def _replace_files(directory: str, old: Written, new: Written) -> None:
    kept = {entry["name"] for entry in new.files}
    for entry in old.files:
        if entry["name"] not in kept:
            storage.remove(storage.join(directory, entry["name"]))
    old.files = new.files
