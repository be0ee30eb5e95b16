"""Plain Parquet tables whose slices are replaced atomically by staged directories.

``<table>/<column>=<value>/...`` holds a slice, as every Parquet reader expects, with a ``_commit.json``
that lists its files. A slice is first written to ``<table>/_staging/<version>``, its ``_commit.json``
last; then the old directory is moved aside and the staged one takes its place. A staged directory with
a ``_commit.json`` is a decision: whoever opens the slice next finishes the move (`recover`). One without
is rubbish of a killed writer.
"""

from __future__ import annotations

import posixpath
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.parquet as pq

from wals_spark import storage
from wals_spark.errors import InputError
from wals_spark.schemas import Table
from wals_spark.tables.base import DataFile, Slice, TableStore

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

COMMIT = "_commit.json"
STAGING = "_staging"
TRASH = "_trash"


def partition_directory(values: Mapping[str, str]) -> str:
    """``a=1/b=2``, with the characters escaped that a directory name cannot hold."""
    return (
        posixpath.join(*(f"{name}={quote(str(value), safe='-._')}" for name, value in values.items())) if values else ""
    )


def partition_values(relative_path: str) -> dict[str, str]:
    """The inverse of `partition_directory`, for the path of a file."""
    parts = (part.partition("=") for part in relative_path.split("/")[:-1])
    return {name: unquote(value) for name, equals, value in parts if equals}


class ParquetTables(TableStore):
    """See the module."""

    format = "parquet"

    def directory(self, table: Table, where: Slice) -> str:
        """Where a slice stands; a table without partitions is one slice, ``data``."""
        return storage.join(self.path(table), partition_directory(where) or "data")

    @contextmanager
    def staged(self, table: Table, where: Slice) -> Iterator[str]:
        """A directory to write a new slice into; leaving the block without an error publishes it.

        Files go below the yielded directory, in sub-directories for the partition columns that `where`
        does not fix. Tasks may write there directly; the files are listed and checked on leaving.
        """
        self._check_slice(table, where)
        self.recover(table)
        version = uuid.uuid4().hex[:16]
        staging = storage.join(self.path(table), STAGING, version)
        storage.make_directory(staging)
        try:
            yield staging
            self._seal(table, staging, where, version)
        except BaseException:
            storage.remove(staging)
            raise
        self._publish(table, version)

    def _seal(self, table: Table, staging: str, where: Slice, version: str) -> None:
        """Write the ``_commit.json`` of a staged slice: from here on it counts."""
        fs, root = storage.filesystem(staging)
        schema = table.arrow(partitions=False)
        files: list[dict[str, Any]] = []
        for info in storage.list_files(staging, recursive=True):
            relative = posixpath.relpath(info.path, root)
            if not info.is_file or posixpath.basename(relative).startswith(("_", ".")):
                continue
            with fs.open_input_file(info.path) as source:
                footer = pq.read_metadata(source)
                stored = footer.schema.to_arrow_schema()
            if stored.names != schema.names:
                raise InputError(
                    f"table {table.name}: a file was staged with columns {stored.names}, expected {schema.names}"
                )
            if footer.num_rows:
                files.append({"path": relative, "rows": footer.num_rows, "bytes": info.size})
            else:
                fs.delete_file(info.path)
        storage.write_json(
            storage.join(staging, COMMIT),
            {"version": version, "table": table.name, "slice": dict(where), "files": files},
        )

    def _publish(self, table: Table, version: str) -> None:
        """Move a sealed slice to its place; doing it again after a kill finishes it."""
        staging = storage.join(self.path(table), STAGING, version)
        commit = storage.read_json(storage.join(staging, COMMIT))
        target = self.directory(table, commit["slice"])
        if storage.exists(target):
            storage.move(target, storage.join(self.path(table), TRASH, uuid.uuid4().hex))
        storage.move(staging, target)
        storage.remove(storage.join(self.path(table), TRASH))

    def recover(self, table: Table) -> None:
        """Finish the moves a killed writer had decided on, and remove what it had not."""
        for info in storage.list_files(storage.join(self.path(table), STAGING)):
            version = posixpath.basename(info.path)
            staging = storage.join(self.path(table), STAGING, version)
            if storage.exists(storage.join(staging, COMMIT)):
                self._publish(table, version)
        storage.remove(storage.join(self.path(table), TRASH))

    def replace(self, table: Table, frame: DataFrame, where: Slice, *, rows_per_file: int = 0) -> str:
        rest = [name for name in table.partitions if name not in where]
        expected = [name for name in table.names if name not in where]
        with self.staged(table, where) as staging:
            writer = frame.select(*expected).write.mode("overwrite").option("maxRecordsPerFile", rows_per_file)
            if rest:
                writer = writer.partitionBy(*rest)
            writer.option("compression", "zstd").parquet(staging)
        version = self.version(table, where)
        assert version is not None
        return version

    def replace_rows(self, table: Table, rows: pa.Table, where: Slice) -> str:
        if set(table.partitions) != set(where):
            raise InputError(f"table {table.name}: rows of the driver must fix all of {table.partitions}")
        data = rows.select(table.arrow(partitions=False).names).cast(table.arrow(partitions=False))
        with self.staged(table, where) as staging:
            fs, path = storage.filesystem(staging)
            pq.write_table(data, posixpath.join(path, "part-00000.parquet"), filesystem=fs, compression="zstd")
        version = self.version(table, where)
        assert version is not None
        return version

    def read(self, table: Table, where: Slice | None = None) -> DataFrame:
        where = where or {}
        self._check_slice(table, where)
        self.recover(table)
        reader = self.session().read.schema(table.ddl).option("basePath", self.path(table))
        slices = self._slices(table, where)
        if not slices:
            raise self._missing(table, where)
        return reader.parquet(*slices).select(*table.names)

    def files(self, table: Table, where: Slice | None = None) -> list[DataFile]:
        where = where or {}
        self._check_slice(table, where)
        self.recover(table)
        slices = self._slices(table, where)
        if not slices:
            raise self._missing(table, where)
        return [data_file for directory in slices for data_file in self._committed(table, directory)]

    def _committed(self, table: Table, directory: str) -> list[DataFile]:
        commit_path = storage.join(directory, COMMIT)
        if not storage.exists(commit_path):
            raise InputError(f"{directory} has no {COMMIT}: it was not written by wals_spark, or was damaged")
        commit = storage.read_json(commit_path)
        _, root = storage.filesystem(directory)
        found = {info.path: info.size for info in storage.list_files(directory, recursive=True)}
        files = []
        for entry in commit["files"]:
            path = posixpath.join(root, entry["path"])
            if found.get(path) != entry["bytes"]:
                state = f"has {found[path]} bytes" if path in found else "is not there"
                raise InputError(
                    f"table {table.name}: {storage.join(directory, entry['path'])} {state}, "
                    f"its {COMMIT} says {entry['bytes']} bytes; the stage that wrote it must run again (--force)"
                )
            values = {**commit["slice"], **partition_values(entry["path"])}
            files.append(DataFile(storage.join(directory, entry["path"]), entry["rows"], entry["bytes"], values))
        return files

    def _slices(self, table: Table, where: Slice) -> list[str]:
        """The directories of the committed slices that `where` selects."""
        if where or not table.partitions:
            directory = self.directory(table, where)
            if storage.exists(storage.join(directory, COMMIT)):
                return [directory]
            if not storage.exists(directory):
                return []
        return self._committed_below(self.directory(table, where) if where else self.path(table))

    def _committed_below(self, directory: str) -> list[str]:
        found = []
        for info in storage.list_files(directory):
            name = posixpath.basename(info.path)
            if info.is_file or name.startswith(("_", ".")):
                continue
            child = storage.join(directory, name)
            found += [child] if storage.exists(storage.join(child, COMMIT)) else self._committed_below(child)
        return found

    def values(self, table: Table) -> list[str]:
        self.recover(table)
        names = (posixpath.basename(info.path) for info in storage.list_files(self.path(table)) if not info.is_file)
        prefix = f"{table.partitions[0]}="
        return sorted(unquote(name.removeprefix(prefix)) for name in names if name.startswith(prefix))

    def drop(self, table: Table, where: Slice) -> bool:
        self._check_slice(table, where)
        self.recover(table)
        directory = self.directory(table, where)
        if not storage.exists(directory):
            return False
        storage.move(directory, storage.join(self.path(table), TRASH, uuid.uuid4().hex))
        storage.remove(storage.join(self.path(table), TRASH))
        return True

    def version(self, table: Table, where: Slice | None = None) -> str | None:
        where = where or {}
        path = storage.join(self.directory(table, where), COMMIT)
        return str(storage.read_json(path)["version"]) if storage.exists(path) else None

    def _missing(self, table: Table, where: Slice) -> InputError:
        what = partition_directory(where)
        return InputError(f"table {table.name}{f' ({what})' if what else ''} is not in {self.warehouse}")
