"""What the stage and the batch commands share: the vocabulary, a scratch directory, a bound on Spark's batches."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wals_spark import schemas, storage
from wals_spark.errors import InputError
from wals_spark.stage import Context


@dataclass(frozen=True)
class Vocabulary:
    """What the counting needs of the vocabulary table: tokens and counts by id."""

    tokens: list[str]
    counts: np.ndarray


def read_vocabulary(context: Context) -> Vocabulary:
    """The vocabulary table in the order of the ids.

    Raises
    ------
    InputError
        Ids are missing or doubled.
    """
    parts = []
    for data_file in context.tables.files(schemas.VOCABULARY):
        fs, path = storage.filesystem(data_file.path)
        with fs.open_input_file(path) as source:
            parts.append(pq.ParquetFile(source).read(columns=["token_id", "token", "count"]))
    table = pa.concat_tables(parts).sort_by("token_id")
    ids = table["token_id"].to_numpy()
    if not np.array_equal(ids, np.arange(len(ids))):
        raise InputError(
            f"the vocabulary table has ids other than 0 .. {len(ids) - 1}, once each; run vocabulary again"
        )
    return Vocabulary(table["token"].to_pylist(), table["count"].to_numpy())


@contextmanager
def scratch_directory(context: Context, batch_id: str) -> Iterator[str]:
    """A directory of this batch that is gone afterwards; what a killed command left is removed first."""
    base = storage.join(context.manifests.warehouse, "_scratch", f"cooccurrence-{batch_id}")
    storage.remove(base)
    directory = storage.join(base, uuid.uuid4().hex[:8])
    storage.make_directory(directory)
    try:
        yield directory
    finally:
        storage.remove(base)


@contextmanager
def bounded_batches(context: Context) -> Iterator[None]:
    """Spark hands packed rows to Python in batches by bytes: 10,000 blobs at a time would be gigabytes."""
    key = "spark.sql.execution.arrow.maxBytesPerBatch"
    conf = context.spark.conf
    before = conf.get(key)
    conf.set(key, str(16 << 20))
    try:
        yield
    finally:
        if before is not None:
            conf.set(key, before)
