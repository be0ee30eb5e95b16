"""Documents with the same id: found by one shuffle of the ids."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from wals_spark import storage
from wals_spark.corpus.shuffle import ShuffleRecord, pack_table, unpack_table
from wals_spark.token_shards import document_key

EXAMPLES = 5


@dataclass
class DuplicateIds:
    """Documents whose id was seen before: how many, some ids, and the tasks that wrote them."""

    count: int = 0
    examples: list[str] = field(default_factory=list)
    tasks: set[int] = field(default_factory=set)

    def __add__(self, other: DuplicateIds) -> DuplicateIds:
        examples = sorted(self.examples + other.examples)[:EXAMPLES]
        return DuplicateIds(self.count + other.count, examples, self.tasks | other.tasks)

    def dump(self) -> bytes:
        """As bytes."""
        return json.dumps({"count": self.count, "examples": self.examples, "tasks": sorted(self.tasks)}).encode()

    @staticmethod
    def load(payload: bytes) -> DuplicateIds:
        """The inverse of `dump`."""
        data = json.loads(payload)
        return DuplicateIds(data["count"], data["examples"], set(data["tasks"]))

    def message(self) -> str:
        """The message of the error."""
        names = ", ".join(repr(name) for name in self.examples)
        return (
            f"{self.count:,} documents have an id that another document of the batch has (for example {names}); "
            "give every document its own id, or set corpus.duplicate_ids=keep_first"
        )


def pack_ids(ids: Sequence[str], task: int, buckets: int) -> Iterator[ShuffleRecord]:
    """The ids of a task by bucket, each with its row among the task's documents."""
    if not ids:
        return
    keys = np.fromiter((document_key(name) % buckets for name in ids), np.int64, len(ids))
    column = pa.array(ids, pa.string())
    for bucket in np.unique(keys).tolist():
        rows = np.flatnonzero(keys == bucket)
        columns = [column.take(pa.array(rows)), pa.array(np.full(len(rows), task, np.int64)), pa.array(rows)]
        yield ShuffleRecord(bucket, "ids", pack_table(pa.RecordBatch.from_arrays(columns, names=["id", "task", "row"])))


def find_duplicates(payloads: Sequence[bytes], work: str | None) -> DuplicateIds:
    """All but the first document of each id, in the order (task, row).

    Parameters
    ----------
    work : str or None
        Where to write the rows to drop, per task, for `read_drop_lists`; None = count only.
    """
    if not payloads:
        return DuplicateIds()
    table = pa.concat_tables([unpack_table(payload) for payload in payloads])
    if pc.count_distinct(table["id"]).as_py() == len(table):
        return DuplicateIds()
    table = table.sort_by([("id", "ascending"), ("task", "ascending"), ("row", "ascending")])
    ids = table["id"].combine_chunks()
    again = np.concatenate([[False], pc.equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)])
    repeated = table.filter(pa.array(again))
    tasks = repeated["task"].to_numpy()
    names = pc.unique(repeated["id"])[:EXAMPLES].to_pylist()
    if work is not None:
        write_drop_lists(work, tasks, repeated["row"].to_numpy(), f"{document_key(names[0]):016x}")
    return DuplicateIds(len(repeated), names, set(tasks.tolist()))


def write_drop_lists(work: str, tasks: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], part: str) -> None:
    """Write the rows to drop, a file per task.

    Parameters
    ----------
    work : str
        Directory that `read_drop_lists` reads.
    tasks : int64 array of shape (n,)
        Task of each document to drop.
    rows : int64 array of shape (n,)
        Its row among the task's documents.
    part : str
        Name of the files: another one for every reducer.
    """
    for task in np.unique(tasks).tolist():
        content = rows[tasks == task].astype("<i8").tobytes()
        storage.write_bytes(storage.join(work, f"drop-{task:05d}", part), content)


def read_drop_lists(work: str, task: int) -> npt.NDArray[np.int64]:
    """The rows of a task that all reducers want dropped."""
    files = storage.list_files(storage.join(work, f"drop-{task:05d}"))
    parts = [np.frombuffer(storage.read_bytes(info.path), "<i8") for info in files]
    return np.sort(np.concatenate(parts)) if parts else np.zeros(0, np.int64)
