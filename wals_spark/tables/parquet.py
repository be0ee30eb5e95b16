"""Plain Parquet tables whose slices are replaced atomically by staged directories.

``<table>/<column>=<value>/...`` holds a slice, as every Parquet reader expects, with a ``_commit.json``
that lists its files. A slice is first written to ``<table>/_staging/<slice>.<version>``, its
``_commit.json`` last; then the old directory is moved aside and the staged one takes its place. A staged
directory with a ``_commit.json`` is committed: the next use of the table finishes the move
(`ParquetTables.recover`). One without was left by a killed writer; the next writer of the slice
removes it. The moves of one table happen under a lock.

The moves are renames of directories, which object stores do not have; there, use Delta.
"""

from __future__ import annotations

import posixpath
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from wals_spark import storage
from wals_spark.errors import ConfigError, InputError
from wals_spark.schemas import Table
from wals_spark.tables.base import DataFile, Slice, TableStore, spark_path, spark_read_path

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

COMMIT = "_commit.json"
STAGING = "_staging"
TRASH = "_trash"
LOCK = "_lock"
_NO_RENAME = re.compile(r"^(s3[an]?|gs|gcs):")


def partition_directory(values: Mapping[str, str]) -> str:
    """``a=1/b=2``, with the characters escaped that a directory name cannot hold."""
    return "/".join(f"{name}={quote(str(value), safe='-._')}" for name, value in values.items())


def partition_values(relative_path: str) -> dict[str, str]:
    """The inverse of `partition_directory`, for the path of a file."""
    parts = (part.partition("=") for part in relative_path.split("/")[:-1])
    return {name: unquote(value) for name, equals, value in parts if equals}


class ParquetTables(TableStore):
    """Tables as directories of Parquet files; see the module."""

    format = "parquet"

    def directory(self, table: Table, where: Slice) -> str:
        """Directory of a slice; a table without partitions is one slice, ``data``."""
        return storage.join(self.path(table), partition_directory(where) or "data")

    @contextmanager
    def staged_slice(self, table: Table, where: Slice, *, instead_of: Sequence[Slice] = ()) -> Iterator[str]:
        self._check_slice(table, where)
        if _NO_RENAME.match(self.warehouse):
            raise ConfigError(
                f"table_format is parquet and the warehouse is {self.warehouse}: Parquet tables are replaced by "
                "renaming directories, which this store cannot; set table_format: delta"
            )
        self.recover(table)
        self._remove_unsealed(table, where)
        version = uuid.uuid4().hex[:16]
        staging = storage.join(self.path(table), STAGING, f"{_staging_name(where)}.{version}")
        storage.make_directory(staging)
        try:
            yield staging
            self._seal(table, staging, where, version, instead_of)
        except BaseException:
            storage.remove(staging)
            raise
        self.recover(table)

    def _remove_unsealed(self, table: Table, where: Slice) -> None:
        """Remove staged directories of this slice that killed writers have not committed."""
        for staging in self._staged(table):
            name = posixpath.basename(staging).rpartition(".")[0]
            if name == _staging_name(where) and not storage.exists(storage.join(staging, COMMIT)):
                storage.remove(staging)

    def _staged(self, table: Table) -> list[str]:
        root = storage.join(self.path(table), STAGING)
        return [storage.join(root, posixpath.basename(info.path)) for info in storage.list_files(root)]

    def _seal(self, table: Table, staging: str, where: Slice, version: str, instead_of: Sequence[Slice]) -> None:
        """Write the ``_commit.json`` of a staged slice, which commits it."""
        fs, root = storage.filesystem(staging)
        schema = table.arrow(partitions=False)
        found = []
        for info in storage.list_files(staging, recursive=True):
            if info.is_file and posixpath.basename(info.path).startswith(("_", ".")):
                fs.delete_file(info.path)
            elif info.is_file:
                found.append(info)

        def entry(info: pafs.FileInfo) -> dict[str, Any]:
            relative = posixpath.relpath(info.path, root)
            with fs.open_input_file(info.path) as source:
                footer = pq.read_metadata(source)
            names = footer.schema.to_arrow_schema().names
            if names != schema.names:
                raise InputError(f"table {table.name}: {relative} was staged with columns {names}, not {schema.names}")
            if not footer.num_rows:
                fs.delete_file(info.path)
                return {"path": relative, "rows": 0, "bytes": 0}
            # No two versions share a name: who has listed the one before finds its files or none, never a mixture.
            stem, suffix = posixpath.splitext(relative)
            named = f"{stem}-{version}{suffix}"
            fs.move(info.path, posixpath.join(root, named))
            return {"path": named, "rows": footer.num_rows, "bytes": info.size}

        with ThreadPoolExecutor(8) as pool:
            files = [described for described in pool.map(entry, found) if described["rows"]]
        commit = {"version": version, "table": table.name, "slice": dict(where), "files": files}
        if instead_of:
            commit["instead_of"] = [dict(other) for other in instead_of]
        storage.write_json(storage.join(staging, COMMIT), commit)

    def recover(self, table: Table) -> None:
        """Finish the moves of committed slices, whose writer may have been killed."""
        if not any(storage.exists(storage.join(staging, COMMIT)) for staging in self._staged(table)):
            return
        with storage.locked(storage.join(self.path(table), LOCK)):
            for staging in self._staged(table):
                if storage.exists(storage.join(staging, COMMIT)):
                    self._publish(table, staging)
            storage.remove(storage.join(self.path(table), TRASH))

    def _publish(self, table: Table, staging: str) -> None:
        """Move a sealed slice to its place; doing it again after a kill finishes it."""
        commit = storage.read_json(storage.join(staging, COMMIT))
        target = self.directory(table, commit["slice"])
        for directory in (target, *(self.directory(table, other) for other in commit.get("instead_of", ()))):
            if storage.exists(directory):
                storage.move(directory, storage.join(self.path(table), TRASH, uuid.uuid4().hex))
        storage.move(staging, target)

    def replace(
        self, table: Table, frame: DataFrame, where: Slice, *, rows_per_file: int = 0, instead_of: Sequence[Slice] = ()
    ) -> str:
        rest = [name for name in table.partitions if name not in where]
        expected = [name for name in table.names if name not in where]
        with self.staged_slice(table, where, instead_of=instead_of) as staging:
            writer = frame.select(*expected).write.mode("overwrite").option("maxRecordsPerFile", rows_per_file)
            if rest:
                writer = writer.partitionBy(*rest)
            writer.option("compression", "zstd").parquet(spark_path(staging))
        version = self.version(table, where)
        assert version is not None
        return version

    def replace_rows(self, table: Table, rows: pa.Table, where: Slice, *, instead_of: Sequence[Slice] = ()) -> str:
        if set(table.partitions) != set(where):
            raise InputError(f"table {table.name}: rows of the driver must fix all of {table.partitions}")
        data = rows.select(table.arrow(partitions=False).names).cast(table.arrow(partitions=False))
        with self.staged_slice(table, where, instead_of=instead_of) as staging:
            fs, path = storage.filesystem(staging)
            pq.write_table(data, posixpath.join(path, "part-00000.parquet"), filesystem=fs, compression="zstd")
        version = self.version(table, where)
        assert version is not None
        return version

    def read(self, table: Table, where: Slice | None = None) -> DataFrame:
        where = where or {}
        self._check_slice(table, where)
        self.recover(table)
        reader = self.session().read.schema(table.ddl).option("basePath", spark_path(self.path(table)))
        slices = self._slices(table, where)
        if not slices:
            raise self._missing(table, where)
        return reader.parquet(*map(spark_read_path, slices)).select(*table.names)

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
        with storage.locked(storage.join(self.path(table), LOCK)):
            if not storage.exists(directory):
                return False
            storage.move(directory, storage.join(self.path(table), TRASH, uuid.uuid4().hex))
            storage.remove(storage.join(self.path(table), TRASH))
        return True

    def maintain(self, table: Table, retain_hours: float) -> dict[str, int]:
        """Remove what killed writers left: trash, and staged directories older than `retain_hours`."""
        self.recover(table)
        removed = 0
        with storage.locked(storage.join(self.path(table), LOCK)):
            for staging in self._staged(table):
                if storage.age_hours(staging) >= retain_hours:
                    storage.remove(staging)
                    removed += 1
            storage.remove(storage.join(self.path(table), TRASH))
        return {"removed_directories": removed}

    def version(self, table: Table, where: Slice | None = None) -> str | None:
        where = where or {}
        path = storage.join(self.directory(table, where), COMMIT)
        return str(storage.read_json(path)["version"]) if storage.exists(path) else None

    def _missing(self, table: Table, where: Slice) -> InputError:
        what = partition_directory(where)
        return InputError(f"table {table.name}{f' ({what})' if what else ''} is not in {self.warehouse}")


def _staging_name(where: Slice) -> str:
    return quote(partition_directory(where) or "data", safe="-._=")
