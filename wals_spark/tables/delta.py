"""Delta tables: one commit per slice, by ``replaceWhere``; the only module that imports ``delta``."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from wals_spark import storage
from wals_spark.errors import InputError
from wals_spark.schemas import Table
from wals_spark.tables.base import DataFile, Slice, TableStore
from wals_spark.tables.parquet import partition_values

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


def predicate(where: Slice) -> str:
    """A slice as a SQL condition. Values are directory names without quotes, checked by the configuration."""
    for value in where.values():
        if "'" in str(value) or "\\" in str(value):
            raise InputError(f"{value!r} cannot name a slice: it holds a quote or a backslash")
    return " AND ".join(f"{name} = '{value}'" for name, value in where.items()) or "true"


class DeltaTables(TableStore):
    """See the module."""

    format = "delta"

    def _exists(self, table: Table) -> bool:
        return storage.exists(storage.join(self.path(table), "_delta_log"))

    def replace(self, table: Table, frame: DataFrame, where: Slice, *, rows_per_file: int = 0) -> str:
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
            writer = writer.option("replaceWhere", predicate(where))
        writer.save(self.path(table))
        version = self.version(table)
        assert version is not None
        return version

    def replace_rows(self, table: Table, rows: pa.Table, where: Slice) -> str:
        data = rows.select(table.arrow(partitions=False).names).cast(table.arrow(partitions=False))
        return self.replace(table, self.session().createDataFrame(data), where)

    def read(self, table: Table, where: Slice | None = None) -> DataFrame:
        where = where or {}
        self._check_slice(table, where)
        if not self._exists(table):
            raise InputError(f"table {table.name} is not in {self.warehouse} as Delta")
        frame = self.session().read.format("delta").load(self.path(table))
        return (frame.where(predicate(where)) if where else frame).select(*table.names)

    def files(self, table: Table, where: Slice | None = None) -> list[DataFile]:
        paths = sorted(unquote(path) for path in self.read(table, where).inputFiles())
        if not paths:
            raise InputError(f"table {table.name} ({predicate(where or {})}) has no rows in {self.warehouse}")
        files = []
        for uri in paths:
            fs, path = storage.filesystem(uri)
            size = fs.get_file_info(path).size
            if size is None:
                raise InputError(f"table {table.name}: {uri} is in the Delta log but not on disk")
            with fs.open_input_file(path) as source:
                rows = pq.read_metadata(source).num_rows
            local = path if storage.is_local(uri) else uri
            files.append(DataFile(local, rows, size, partition_values(path)))
        return files

    def values(self, table: Table) -> list[str]:
        if not self._exists(table):
            return []
        frame = self.session().read.format("delta").load(self.path(table))
        return sorted(str(row[0]) for row in frame.select(table.partitions[0]).distinct().collect())

    def drop(self, table: Table, where: Slice) -> bool:
        from delta.tables import DeltaTable

        self._check_slice(table, where)
        if not self._exists(table) or self.read(table, where).isEmpty():
            return False
        DeltaTable.forPath(self.session(), self.path(table)).delete(predicate(where))
        return True

    def version(self, table: Table, where: Slice | None = None) -> str | None:
        from delta.tables import DeltaTable

        if not self._exists(table):
            return None
        history = DeltaTable.forPath(self.session(), self.path(table)).history(1)
        return str(history.select("version").first()[0])
