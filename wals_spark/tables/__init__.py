"""Tables of the warehouse, as Parquet or Delta, behind one small interface."""

from wals_spark.tables.base import DataFile, TableStore, open_tables

__all__ = ["DataFile", "TableStore", "open_tables"]
