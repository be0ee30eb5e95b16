"""Which files make up a version of a Delta table, by ``deltalake``: no Spark, and no log parser of our own.

Protocol and metadata are checked before any file is listed: a table with a reader feature that ``deltalake`` does not
know is refused by the feature's name. Deleted rows and renamed columns are told, not hidden: who reads the files
applies them (`LogFile.deleted`, `physical_path`), or refuses the table.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from wals_spark import storage
from wals_spark.errors import InputError

if TYPE_CHECKING:
    from deltalake import DeltaTable

_COMMIT = re.compile(r"^(\d{20})\.json$")


@dataclass(frozen=True)
class LogFile:
    """A file of a version.

    Attributes
    ----------
    path : str
        Path or URI, absolute where the table's is: a shallow clone has files elsewhere.
    bytes : int
    rows : int or None
        With the deleted ones; None where the log does not say.
    values : mapping of str to str
        Partition values, as text.
    deleted : bool array of shape (rows,) or None
        True where the file's deletion vector deletes the row; None where it has none.
    """

    path: str
    bytes: int
    rows: int | None
    values: dict[str, str]
    deleted: npt.NDArray[np.bool_] | None = None


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
        No table, no such version, a gap in the log, or a table feature that ``deltalake`` does not know.
    """
    table = _open(table_path, version)
    deleted = _deleted_rows(table, table_path) if "deletionVectors" in reader_features(table) else {}
    actions = pa.table(table.get_add_actions()).to_pylist()
    files = []
    for action in actions:
        path = _resolved(table_path, action["path"])
        values = {name: str(value) for name, value in (action.get("partition") or {}).items()}
        files.append(LogFile(path, action["size_bytes"], action["num_records"], values, deleted.get(path)))
    return sorted(files, key=lambda file: file.path)


def reader_features(table: DeltaTable) -> list[str]:
    """What a reader of the table must know, by the protocol's names."""
    protocol = table.protocol()
    legacy = ["columnMapping"] if protocol.min_reader_version == 2 else []
    return sorted(protocol.reader_features or legacy)


def physical_path(table_path: str, column: str, version: int | None = None) -> list[str]:
    """The name of a column in the table's Parquet files, a segment per level of nesting.

    Parameters
    ----------
    table_path : str
    column : str
        A column's name, or names joined by dots for a field of a struct.
    version : int or None
        None = the newest.

    Returns
    -------
    list of str
        The given name where the table maps none; an unknown name comes back as it is.

    Raises
    ------
    InputError
        See `active_files`; a table whose columns are mapped by the ids of Parquet fields.
    """
    table = _open(table_path, version)
    mode = table.metadata().configuration.get("delta.columnMapping.mode", "none")
    schema = json.loads(table.schema().to_json())
    if mode not in ("none", "name"):
        # Parquet files of this mode may have any names; those that Delta's own writers make have the physical ones.
        raise InputError(
            f"the Delta table {table_path} has the feature columnMapping with delta.columnMapping.mode {mode!r}, "
            "expected none or name; write it to another table, for example CREATE TABLE ... AS SELECT * FROM ..."
        )
    found = _physical(schema["fields"], column)
    return found if found is not None else [column]


def _physical(fields: Sequence[dict[str, Any]], column: str) -> list[str] | None:
    for field in fields:
        physical = field["metadata"].get("delta.columnMapping.physicalName", field["name"])
        if field["name"] == column:
            return [physical]
        kind = field["type"]
        if column.startswith(f"{field['name']}.") and isinstance(kind, dict) and kind["type"] == "struct":
            inner = _physical(kind["fields"], column[len(field["name"]) + 1 :])
            if inner is not None:
                return [physical, *inner]
    return None


def _open(table_path: str, version: int | None) -> DeltaTable:
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    newest = latest_version(table_path)
    if newest is None:
        raise InputError(f"there is no Delta table at {table_path}")
    if version is not None and version > newest:
        raise InputError(f"{table_path} has no version {version}, its newest is {newest}")
    if storage.is_local(table_path) and (odd := re.search(r"%[0-9A-Fa-f]{2}|\\", table_path)):
        raise InputError(
            f"the Delta table {table_path} cannot be opened: deltalake takes {odd.group()!r} for another character; "
            "rename the directory"
        )
    try:
        return DeltaTable(table_path, version=version)
    except DeltaError as error:
        reason = str(error).splitlines()[0].removeprefix("Kernel error: ")
        which = f"version {newest if version is None else version} of the Delta table {table_path}"
        raise InputError(
            f"{which} cannot be read: {reason}; write what is needed of it to a table or to Parquet files that are "
            "readable, for example by CREATE TABLE ... AS SELECT"
        ) from error


def _deleted_rows(table: DeltaTable, table_path: str) -> dict[str, npt.NDArray[np.bool_]]:
    vectors = pa.table(table.deletion_vectors())
    return {
        _resolved(table_path, row["filepath"]): ~np.array(row["selection_vector"], bool) for row in vectors.to_pylist()
    }


def _resolved(table_path: str, path: str) -> str:
    """An action's path, a percent-encoded URI that may be relative to the table, as ours."""
    plain = unquote(path)
    if not urlsplit(path).scheme:
        return plain if plain.startswith("/") else storage.join(table_path, plain)
    return storage.absolute(plain)
