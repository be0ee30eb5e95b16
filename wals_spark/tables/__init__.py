"""Tables of the warehouse, as Parquet or Delta, behind one small interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from wals_spark.tables.base import DataFile, TableStore
from wals_spark.tables.parquet import ParquetTables

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["DataFile", "ParquetTables", "TableStore", "open_tables"]


def open_tables(table_format: str, warehouse: str, session: Callable[[], SparkSession]) -> TableStore:
    """The tables of a warehouse in the given format."""
    if table_format == "delta":
        from wals_spark.tables.delta import DeltaTables

        return DeltaTables(warehouse, session)
    return ParquetTables(warehouse, session)
