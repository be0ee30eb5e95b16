"""Delta tables: one commit per slice, by ``replaceWhere``.

Writing is Spark's. What only lists files or versions reads the log by `delta_log`, so that it needs no Spark job.
A reader of the table never sees a part of a slice, and older versions can be read until `DeltaTables.maintain`
removes their files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from wals_spark import storage
from wals_spark.errors import ConfigError, InputError
from wals_spark.schemas import Table
from wals_spark.tables import delta_log
from wals_spark.tables.base import DataFile, Slice, TableStore, spark_path

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

LEAST_RETENTION_HOURS = 168.0
"""Delta's own least retention: a reader or writer that takes longer than it would lose files in use."""
OPEN_WRITERS = 16
"""Partition directories a task writes at a time before Spark would sort the rows by partition first."""


def slice_predicate(where: Slice) -> str:
    """A slice as a SQL condition. Values are directory names without quotes, checked by the configuration."""
    for value in where.values():
        if "'" in str(value) or "\\" in str(value):
            raise InputError(f"{value!r} cannot name a slice: it holds a quote or a backslash")
    return " AND ".join(f"{name} = '{value}'" for name, value in where.items()) or "true"


class DeltaTables(TableStore):
    """Delta tables; see the module."""

    format = "delta"

    def _exists(self, table: Table) -> bool:
        return delta_log.latest_version(self.path(table)) is not None

    def replace(
        self, table: Table, frame: DataFrame, where: Slice, *, rows_per_file: int = 0, instead_of: Sequence[Slice] = ()
    ) -> str:
        from pyspark.sql import functions as F

        self._check_slice(table, where)
        for name, value in where.items():
            kind = dict(table.columns)[name]
            frame = frame.withColumn(name, F.lit(value).cast(kind))
        writer = frame.select(*table.names).write.format("delta").mode("overwrite")
        writer = writer.option("maxRecordsPerFile", rows_per_file)
        if table.partitions:
            writer = writer.partitionBy(*table.partitions)
        if where and self._exists(table):
            condition = " OR ".join(f"({slice_predicate(part)})" for part in (where, *instead_of))
            writer = writer.option("replaceWhere", condition)
        conf = self.session().conf
        key = "spark.sql.maxConcurrentOutputFileWriters"
        before = conf.get(key, "0")
        conf.set(key, str(OPEN_WRITERS))
        try:
            writer.save(spark_path(self.path(table)))
        finally:
            conf.set(key, before or "0")
        version = self.version(table)
        assert version is not None
        return version

    def replace_rows(self, table: Table, rows: pa.Table, where: Slice, *, instead_of: Sequence[Slice] = ()) -> str:
        data = rows.select(table.arrow(partitions=False).names).cast(table.arrow(partitions=False))
        frame = self.session().createDataFrame(data).coalesce(1)
        return self.replace(table, frame, where, instead_of=instead_of)

    def read(self, table: Table, where: Slice | None = None, *, version: str | None = None) -> DataFrame:
        """See `TableStore.read`; `version` reads an older version of the table."""
        where = where or {}
        self._check_slice(table, where)
        if not self._exists(table):
            raise InputError(f"table {table.name} is not in {self.warehouse} as Delta")
        reader = self.session().read.format("delta")
        if version is not None:
            reader = reader.option("versionAsOf", version)
        frame = reader.load(spark_path(self.path(table)))
        return (frame.where(slice_predicate(where)) if where else frame).select(*table.names)

    def files(self, table: Table, where: Slice | None = None, *, version: str | None = None) -> list[DataFile]:
        """See `TableStore.files`; `version` lists those of an older version of the table."""
        where = where or {}
        self._check_slice(table, where)
        if not self._exists(table):
            raise InputError(f"table {table.name} is not in {self.warehouse} as Delta")
        listed = [
            entry
            for entry in delta_log.active_files(self.path(table), None if version is None else int(version))
            if all(entry.values.get(name) == str(value) for name, value in where.items())
        ]
        if not listed:
            raise InputError(f"table {table.name} ({slice_predicate(where)}) has no rows in {self.warehouse}")
        return [self._data_file(table, entry) for entry in listed]

    def _data_file(self, table: Table, entry: delta_log.LogFile) -> DataFile:
        path = entry.path
        fs, inner = storage.filesystem(path)
        size = fs.get_file_info(inner).size
        if entry.deleted is not None:
            raise InputError(
                f"table {table.name}: {path} has a deletion vector (the feature deletionVectors), which this reader "
                "does not apply; set delta.enableDeletionVectors to false and run REORG TABLE ... APPLY (PURGE)"
            )
        if size != entry.bytes:
            state = "is not there" if size is None else f"has {size} bytes"
            raise InputError(
                f"table {table.name}: {path} {state}, the Delta log says {entry.bytes} bytes; the stage that wrote "
                "it must run again (--force)"
            )
        rows = entry.rows
        if rows is None:
            with fs.open_input_file(inner) as source:
                rows = pq.read_metadata(source).num_rows
        return DataFile(path, rows, entry.bytes, entry.values)

    def values(self, table: Table) -> list[str]:
        if not self._exists(table):
            return []
        return sorted({entry.values[table.partitions[0]] for entry in delta_log.active_files(self.path(table))})

    def drop(self, table: Table, where: Slice) -> bool:
        self._check_slice(table, where)
        listed = delta_log.active_files(self.path(table)) if self._exists(table) else []
        if not any(all(entry.values.get(name) == str(value) for name, value in where.items()) for entry in listed):
            return False
        self.session().sql(f"DELETE FROM {self._sql_name(table)} WHERE {slice_predicate(where)}")
        return True

    def maintain(self, table: Table, retain_hours: float) -> dict[str, int]:
        """``OPTIMIZE`` (small files of a partition become one), then ``VACUUM``.

        Raises
        ------
        ConfigError
            `retain_hours` is below `LEAST_RETENTION_HOURS`.
        """
        if retain_hours < LEAST_RETENTION_HOURS:
            raise ConfigError(
                f"retain_hours is {retain_hours:g}, expected at least {LEAST_RETENTION_HOURS:g}: files that a running "
                "reader or writer needs must not be removed"
            )
        if not self._exists(table):
            return {}
        name = self._sql_name(table)
        metrics = self.session().sql(f"OPTIMIZE {name}").select("metrics.*").first()
        before = _data_files(self.path(table))
        self.session().sql(f"VACUUM {name} RETAIN {retain_hours} HOURS")
        return {
            "optimized_files": int(metrics["numFilesRemoved"]) if metrics is not None else 0,
            "removed_files": before - _data_files(self.path(table)),
        }

    def _sql_name(self, table: Table) -> str:
        """The table by its path in SQL, which needs Delta's jars and not its Python package."""
        return f"delta.`{spark_path(self.path(table)).replace('`', '``')}`"

    def version(self, table: Table, where: Slice | None = None) -> str | None:
        version = delta_log.latest_version(self.path(table))
        return None if version is None else str(version)


def _data_files(path: str) -> int:
    return sum(info.is_file and "/_delta_log/" not in info.path for info in storage.list_files(path, recursive=True))
