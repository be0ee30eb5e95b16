"""The counts of a warehouse in memory, without Spark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wals_spark import schemas, storage
from wals_spark.errors import InputError
from wals_spark.matrix import to_scipy
from wals_spark.runs import ManifestStore
from wals_spark.stage_outputs import CooccurrenceOutputs, outputs_of
from wals_spark.tables import open_tables
from wals_spark.tables.count_facts import agreed_facts
from wals_spark.tables.vocabulary import read_vocabulary

if TYPE_CHECKING:
    from pyspark.sql import SparkSession
    from scipy.sparse import csr_matrix


@dataclass(frozen=True)
class CountMatrix:
    """Weighted counts with the tokens of their rows and columns.

    Attributes
    ----------
    counts : csr_matrix of shape (V, V), float64
    tokens : list of str of length V
    """

    counts: csr_matrix
    tokens: list[str]


def read_matrix(warehouse: str, batches: Sequence[str] = ("all",)) -> CountMatrix:
    """The exact sum of batches, from Parquet or Delta tables.

    Raises
    ------
    InputError
        A batch is missing, batches were counted in different ways, or with tokens that the vocabulary table does not
        begin with.
    """
    warehouse = storage.absolute(warehouse)
    manifests = ManifestStore(warehouse)
    names = manifests.keys("cooccurrence") if tuple(batches) == ("all",) else list(batches)
    if not names:
        raise InputError(f"there are no counts in {warehouse}; run `wals-spark cooccurrence` first")
    found = [manifests.require("cooccurrence", name) for name in names]
    is_delta = storage.exists(storage.join(warehouse, schemas.COOCCURRENCE.name, "_delta_log"))
    tables = open_tables("delta" if is_delta else "parquet", warehouse, _no_session)
    vocabulary = read_vocabulary(tables)
    facts = agreed_facts(found, vocabulary)
    paths = [
        data_file.path
        for manifest in found
        if outputs_of(manifest, CooccurrenceOutputs)["nnz"]
        for data_file in tables.files(schemas.COOCCURRENCE, {"batch_id": manifest.key})
    ]
    size = len(vocabulary.tokens)
    return CountMatrix(to_scipy(paths, unit=facts.unit, shape=(size, size)), vocabulary.tokens)


def _no_session() -> SparkSession:
    raise AssertionError("reading files needs no Spark session")
