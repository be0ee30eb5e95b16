"""Files of documents: written by tasks, and written again without the rows that are dropped."""

from __future__ import annotations

import json
import posixpath
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wals_spark import storage
from wals_spark.corpus.document_batch import DocumentBatch
from wals_spark.corpus.duplicate_ids import read_drop_lists
from wals_spark.corpus.shuffle import ShuffleRecord, run_tasks
from wals_spark.schemas import DOCUMENTS

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROW_GROUP_BYTES = 16 << 20
FILE_BYTES = 128 << 20
TEMPORARY = "_tmp-"


@dataclass
class WrittenFiles:
    """What a task wrote: an entry per file (name, documents, held_out, text_bytes), and its counts."""

    files: list[dict[str, Any]]
    counts: dict[str, int]

    def dump(self) -> bytes:
        """As bytes."""
        return json.dumps({"files": self.files, "counts": self.counts}).encode()

    @staticmethod
    def load(payload: bytes) -> WrittenFiles:
        """The inverse of `dump`."""
        return WrittenFiles(**json.loads(payload))


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


def read_document_file(location: str) -> Iterator[DocumentBatch]:
    """The documents of a file of `DocumentWriter`, held out or not."""
    fs, path = storage.filesystem(location)
    with pq.ParquetFile(path, filesystem=fs) as source:
        for group in range(source.num_row_groups):
            for part in source.read_row_group(group, columns=["doc_id", "text"]).to_batches():
                yield DocumentBatch.from_arrow(part["doc_id"].to_pylist(), part["text"], location)


def remove_temporary(directory: str) -> None:
    """Remove what killed attempts of tasks left."""
    for info in storage.list_files(directory):
        if posixpath.basename(info.path).startswith(TEMPORARY):
            storage.remove(storage.join(directory, posixpath.basename(info.path)))


def drop_rows(
    spark: SparkSession, written: dict[int, WrittenFiles], affected: list[int], directory: str, work: str
) -> int:
    """Write the files of some tasks again without the rows of their drop lists.

    Parameters
    ----------
    spark : SparkSession
    written : mapping of int to WrittenFiles
        By task; updated.
    affected : list of int
        The tasks.
    directory : str
        Of the files.
    work : str
        Of the drop lists.

    Returns
    -------
    int
        Number of documents dropped.
    """
    before = sum(entry["documents"] for task in affected for entry in written[task].files)
    rewrite = partial(_without_rows, affected, written, directory, work)
    for record in run_tasks(spark, len(affected), rewrite) if affected else ():
        _replace_files(directory, written[record.bucket], WrittenFiles.load(record.payload))
    return before - sum(entry["documents"] for task in affected for entry in written[task].files)


def _without_rows(
    affected: list[int], written: dict[int, WrittenFiles], directory: str, work: str, index: int
) -> Iterator[ShuffleRecord]:
    """Write the files of a task again without the rows that its drop lists name."""
    task = affected[index]
    dropped = read_drop_lists(work, task)
    start = 0
    files: list[dict[str, Any]] = []
    for entry in written[task].files:
        kept = ~np.isin(np.arange(start, start + entry["documents"]), dropped)
        start += entry["documents"]
        files += [entry] if kept.all() else _filtered(directory, entry["name"], kept)
    yield ShuffleRecord(task, "written", WrittenFiles(files, {}).dump())


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


def _replace_files(directory: str, old: WrittenFiles, new: WrittenFiles) -> None:
    kept = {entry["name"] for entry in new.files}
    for entry in old.files:
        if entry["name"] not in kept:
            storage.remove(storage.join(directory, entry["name"]))
    old.files = new.files
