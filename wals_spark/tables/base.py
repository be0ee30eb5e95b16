"""The interface of the two table formats.

The unit of change is a *slice*: all rows with given values of the leading partition columns (a batch of
counts, a run's factors). Replacing or dropping a slice is atomic: a reader, or a command killed at any
point and run again, sees the old slice or the new one.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wals_spark import storage
from wals_spark.errors import InputError
from wals_spark.schemas import Table

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

Slice = Mapping[str, str]


@dataclass(frozen=True)
class DataFile:
    """A Parquet file of a slice, for readers that bypass Spark.

    Attributes
    ----------
    path : str
        Absolute path or URI.
    rows, bytes : int
    values : mapping
        Its partition values, as text.
    """

    path: str
    rows: int
    bytes: int
    values: Mapping[str, str]

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Some columns of the file, read into memory."""
        import pyarrow.parquet as pq

        fs, path = storage.filesystem(self.path)
        with fs.open_input_file(path) as source:
            return pq.ParquetFile(source).read(columns=list(columns))


class TableStore(ABC):
    """All tables of a warehouse in one format.

    Parameters
    ----------
    warehouse : str
        Directory of the tables.
    session : callable
        Gives the Spark session; called only where one is needed.
    """

    format: str

    def __init__(self, warehouse: str, session: Callable[[], SparkSession]) -> None:
        self.warehouse = warehouse
        self.session = session

    def path(self, table: Table) -> str:
        """Directory of the table."""
        return storage.join(self.warehouse, table.name)

    @abstractmethod
    def replace(
        self, table: Table, frame: DataFrame, where: Slice, *, rows_per_file: int = 0, instead_of: Sequence[Slice] = ()
    ) -> str:
        """Replace a slice by a frame, atomically.

        Parameters
        ----------
        table : Table
        frame : DataFrame
            All columns of the table but those that `where` fixes; its partitions are written as they are.
        where : mapping of str to str
            The slice to replace.
        rows_per_file : int
            Largest number of rows of a file; 0 = no bound.
        instead_of : sequence of mapping of str to str
            Other slices, removed in the same step.

        Returns
        -------
        str
            The version written.

        Raises
        ------
        InputError
            `where` does not name leading partition columns.
        """

    @abstractmethod
    def replace_rows(self, table: Table, rows: pa.Table, where: Slice, *, instead_of: Sequence[Slice] = ()) -> str:
        """Replace a slice by a small Arrow table in the driver's memory.

        Parameters
        ----------
        table : Table
        rows : pyarrow.Table
            All columns of the table but its partition columns.
        where : mapping of str to str
            The slice to replace.
        instead_of : sequence of mapping of str to str
            Other slices, removed in the same step.

        Returns
        -------
        str
            The version written.

        Raises
        ------
        InputError
            `where` does not name leading partition columns, or not all of them.
        """

    @contextmanager
    def staged_slice(self, table: Table, where: Slice, *, instead_of: Sequence[Slice] = ()) -> Iterator[str | None]:
        """A directory for the Parquet files of a new slice, published when the block ends without an error.

        None in a format whose files only Spark can write; the caller then calls `replace`.

        Files go below the directory, in sub-directories for the partition columns that `where` does not fix.
        Tasks may write there directly; the files are listed and checked at the end of the block, and names
        that begin with ``_`` or ``.`` are removed.

        Parameters
        ----------
        table : Table
        where : mapping of str to str
            The slice to replace.
        instead_of : sequence of mapping of str to str
            Other slices, removed in the same step.

        Raises
        ------
        ConfigError
            The warehouse is in an object store, which cannot rename directories.
        InputError
            A staged file has other columns than the table.
        """
        self._check_slice(table, where)
        yield None

    @abstractmethod
    def read(self, table: Table, where: Slice | None = None) -> DataFrame:
        """The slice as a DataFrame with all columns of the table, in order."""

    @abstractmethod
    def files(self, table: Table, where: Slice | None = None) -> list[DataFile]:
        """The files of the slice; `InputError` when one that should be there is lost or cut short."""

    @abstractmethod
    def values(self, table: Table) -> list[str]:
        """The values of the first partition column that have rows, sorted."""

    @abstractmethod
    def drop(self, table: Table, where: Slice) -> bool:
        """Remove a slice; returns whether there was one."""

    @abstractmethod
    def maintain(self, table: Table, retain_hours: float) -> dict[str, int]:
        """Remove files that no version needs and are older than `retain_hours`; returns counts of what was done."""

    @abstractmethod
    def version(self, table: Table, where: Slice | None = None) -> str | None:
        """The version of the slice (Parquet) or of the table (Delta); None when there is none."""

    def _check_slice(self, table: Table, where: Slice) -> None:
        if tuple(where) != table.partitions[: len(where)]:
            raise InputError(
                f"table {table.name}: a slice is named by its leading partition columns {table.partitions}, "
                f"found {tuple(where)}"
            )


def spark_read_path(path: str) -> str:
    """As `spark_path`, for Spark's readers; see `without_wildcards`."""
    return without_wildcards(spark_path(path))


def without_wildcards(path: str) -> str:
    """A path for Spark's readers, which take it for a glob: its wildcards and backslashes escaped."""
    return re.sub(r"([\\{}\[\]*?])", r"\\\1", path)


def spark_path(path: str) -> str:
    """A path for Spark: a local one gets its scheme, since Spark would add the default of the cluster."""
    return f"file://{path}" if storage.is_local(path) and not path.startswith("file:") else path
