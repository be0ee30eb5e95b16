"""Every table's columns, spelled here and nowhere else.

A table is declared once and rendered for Spark (`Table.ddl`) and for Arrow (`Table.arrow`), so this
module needs neither to be imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Table:
    """A table of the warehouse.

    Attributes
    ----------
    name : str
        Directory (Parquet) or table (Delta) name below the warehouse.
    columns : tuple of (name, Spark type)
        In order; partition columns come last, as Spark reads them back.
    partitions : tuple of str
        Partition columns. One value of them all is what a write replaces atomically.
    """

    name: str
    columns: tuple[tuple[str, str], ...]
    partitions: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Column names in order, partition columns last."""
        return tuple(name for name, _ in self.columns)

    @property
    def data_columns(self) -> tuple[tuple[str, str], ...]:
        """The columns that are stored in the files, that is, without the partition columns."""
        return tuple((name, kind) for name, kind in self.columns if name not in self.partitions)

    @property
    def ddl(self) -> str:
        """Spark DDL of all columns, as accepted by ``DataFrame.mapInArrow``."""
        return ", ".join(f"`{name}` {kind}" for name, kind in self.columns)

    @property
    def data_ddl(self) -> str:
        """Spark DDL of `data_columns`."""
        return ", ".join(f"`{name}` {kind}" for name, kind in self.data_columns)

    def arrow(self, *, partitions: bool = True) -> pa.Schema:
        """Arrow schema; ``partitions=False`` gives that of the data files."""
        import pyarrow as pa

        types = {
            "string": pa.string(),
            "int": pa.int32(),
            "bigint": pa.int64(),
            "double": pa.float64(),
            "float": pa.float32(),
            "boolean": pa.bool_(),
            "binary": pa.binary(),
            "timestamp": pa.timestamp("us", tz="UTC"),
            "array<float>": pa.list_(pa.float32()),
            "array<int>": pa.list_(pa.int32()),
        }
        columns = self.columns if partitions else self.data_columns
        return pa.schema([(name, types[kind]) for name, kind in columns])


DOCUMENTS = Table(
    "documents",
    (("doc_id", "string"), ("text", "string"), ("held_out", "boolean"), ("batch_id", "string")),
    ("batch_id",),
)
"""The corpus after cleaning; ``held_out`` documents are never counted, only evaluated on."""

VOCABULARY = Table(
    "vocabulary",
    (
        ("token_id", "int"),
        ("token", "string"),
        ("count", "bigint"),
        ("document_count", "bigint"),
        ("is_special", "boolean"),
    ),
)
"""One row per token id, without gaps: ids are 0 .. V-1. Counts are over the documents not held out."""

COOCCURRENCE = Table(
    "cooccurrence",
    (
        ("row_id", "int"),
        ("col_id", "int"),
        ("units", "bigint"),
        ("batch_id", "string"),
        ("row_block", "int"),
    ),
    ("batch_id", "row_block"),
)
"""Fixed-point counts: weighted count = units / unit, the unit standing in the manifest.
Sorted by (row_id, col_id) in a block; both (i, j) and (j, i) are present."""

MARGINALS = Table(
    "marginals",
    (("token_id", "int"), ("row_units", "bigint"), ("col_units", "bigint"), ("batch_id", "string")),
    ("batch_id",),
)
"""Row and column sums of a batch of `COOCCURRENCE`, in the same units."""

FACTORS = Table(
    "factors",
    (
        ("token_id", "int"),
        ("token", "string"),
        ("count", "bigint"),
        ("vector", "array<float>"),
        ("bias", "float"),
        ("run_id", "string"),
        ("side", "string"),
    ),
    ("run_id", "side"),
)
"""U (side = row) and V (side = col), in the canonical gauge."""

METRICS = Table(
    "metrics",
    (
        ("name", "string"),
        ("value", "double"),
        ("low", "double"),
        ("high", "double"),
        ("step", "int"),
        ("at", "timestamp"),
        ("run_id", "string"),
        ("stage", "string"),
    ),
    ("run_id", "stage"),
)
"""Every number a stage reports; low and high bound a 95 % interval where there is one."""

TABLES: dict[str, Table] = {
    table.name: table for table in (DOCUMENTS, VOCABULARY, COOCCURRENCE, MARGINALS, FACTORS, METRICS)
}
