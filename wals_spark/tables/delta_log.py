"""Read a Delta table's log without Spark: which files make up a version.

The protocol, as far as needed: version n is ``_delta_log/<n, 20 digits>.json``, a JSON action per line;
``add`` and ``remove`` name files by path, a later action on a path wins; a checkpoint
``<n>.checkpoint.parquet`` (or ``<n>.checkpoint.<part>.<parts>.parquet``) holds the files of version n.
Tables with deletion vectors, column mapping or version-2 checkpoints are refused: wals_spark writes none.
"""

from __future__ import annotations

import json
import posixpath
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow.parquet as pq

from wals_spark import storage
from wals_spark.errors import InputError

_COMMIT = re.compile(r"^(\d{20})\.json$")
_CHECKPOINT = re.compile(r"^(\d{20})\.checkpoint(?:\.(\d{10})\.(\d{10}))?\.parquet$")


@dataclass(frozen=True)
class LogFile:
    """A file of a version: path relative to the table, bytes, rows where the log says, partition values."""

    path: str
    bytes: int
    rows: int | None
    values: dict[str, str]


def log_directory(table_path: str) -> str:
    """Where the log of a table is."""
    return storage.join(table_path, "_delta_log")


def latest_version(table_path: str) -> int | None:
    """The newest version, or None where there is no Delta table."""
    versions = [
        int(match.group(1))
        for info in storage.list_files(log_directory(table_path))
        if (match := _COMMIT.match(posixpath.basename(info.path)))
    ]
    return max(versions, default=None)


def active_files(table_path: str, version: int | None = None) -> list[LogFile]:
    """The files of a version (None = the newest), by path.

    Raises
    ------
    InputError
        No table, no such version, a gap in the log, or a table feature that this reader does not know.
    """
    names = [posixpath.basename(info.path) for info in storage.list_files(log_directory(table_path))]
    commits = {int(match.group(1)): match.group(0) for name in names if (match := _COMMIT.match(name))}
    if not commits:
        raise InputError(f"there is no Delta table at {table_path}")
    target = max(commits) if version is None else version
    start, parts = _checkpoint(names, target)
    files: dict[str, dict[str, Any]] = {}
    for part in parts:
        for add in _checkpoint_adds(storage.join(log_directory(table_path), part)):
            files[add["path"]] = add
    for number in range(start + 1, target + 1):
        if number not in commits:
            raise InputError(
                f"{table_path}: version {target} cannot be read, its log lacks version {number} "
                f"(it has {min(commits)} .. {max(commits)})"
            )
        content = storage.read_bytes(storage.join(log_directory(table_path), commits[number]))
        for line in content.decode("utf-8").splitlines():
            action = json.loads(line)
            if "remove" in action:
                files.pop(action["remove"]["path"], None)
            elif "add" in action:
                files[action["add"]["path"]] = action["add"]
    return [_log_file(table_path, add) for _, add in sorted(files.items())]


def _checkpoint(names: list[str], target: int) -> tuple[int, list[str]]:
    """The newest complete checkpoint up to `target`, and its parts; (-1, []) where there is none."""
    found: dict[int, list[tuple[int, str]]] = {}
    for name in names:
        match = _CHECKPOINT.match(name)
        if match and int(match.group(1)) <= target:
            found.setdefault(int(match.group(1)), []).append((int(match.group(3) or 1), name))
    complete = {number: parts for number, parts in found.items() if len(parts) >= parts[0][0]}
    if not complete:
        return -1, []
    newest = max(complete)
    parts = complete[newest]
    single = [name for total, name in parts if total == 1]
    return newest, single[:1] or sorted(name for _, name in parts)


def _checkpoint_adds(path: str) -> list[dict[str, Any]]:
    fs, inner = storage.filesystem(path)
    with fs.open_input_file(inner) as source:
        table = pq.ParquetFile(source).read(columns=["add"])
    adds = [add for add in table["add"].to_pylist() if add is not None]
    return [{**add, "partitionValues": dict(add["partitionValues"])} for add in adds]


def _log_file(table_path: str, add: dict[str, Any]) -> LogFile:
    if add.get("deletionVector"):
        raise InputError(
            f"{table_path}: {add['path']} has a deletion vector, which this reader does not apply; "
            "run REORG TABLE ... APPLY (PURGE) and set delta.enableDeletionVectors to false"
        )
    statistics = json.loads(add["stats"]) if add.get("stats") else {}
    values = {name: str(value) for name, value in add["partitionValues"].items()}
    return LogFile(unquote(add["path"]), add["size"], statistics.get("numRecords"), values)
