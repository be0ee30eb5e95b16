"""The vocabulary table in memory, a token and a count per id, and the counts as they were when a batch was encoded."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wals_spark import schemas, storage
from wals_spark.errors import InputError
from wals_spark.tables.base import TableStore
from wals_spark.tokenizer import vocabulary_hash

COUNTS_AT_ENCODING = "vocabulary_counts.parquet"
"""In the directory of an encoded batch: what subsampling goes by, so that later batches do not change it."""


@dataclass(frozen=True)
class Vocabulary:
    """Tokens and counts by id.

    Attributes
    ----------
    tokens : list of str of length V
    counts : int64 array of shape (V,)
    """

    tokens: list[str]
    counts: np.ndarray

    def begins_with(self, size: int, hash_: str) -> bool:
        """Whether its first `size` tokens are the vocabulary of that hash: it is the same, or has grown since."""
        return size <= len(self.tokens) and vocabulary_hash(self.tokens[:size]) == hash_


def read_vocabulary(tables: TableStore) -> Vocabulary:
    """The vocabulary table in the order of the ids.

    Raises
    ------
    InputError
        Ids are missing or doubled.
    """
    parts = []
    for data_file in tables.files(schemas.VOCABULARY):
        parts.append(data_file.read(["token_id", "token", "count"]))
    table = pa.concat_tables(parts).sort_by("token_id")
    ids = table["token_id"].to_numpy()
    if not np.array_equal(ids, np.arange(len(ids))):
        raise InputError(
            f"the vocabulary table has ids other than 0 .. {len(ids) - 1}, once each; run vocabulary again"
        )
    return Vocabulary(table["token"].to_pylist(), table["count"].to_numpy())


def write_counts_at_encoding(directory: str, counts: np.ndarray) -> None:
    """Store the counts of all batches by id, int64 of shape (V,), beside the shards of the batch just encoded."""
    buffer = io.BytesIO()
    pq.write_table(pa.table({"count": pa.array(counts, pa.int64())}), buffer, compression="zstd")
    storage.write_bytes(storage.join(directory, COUNTS_AT_ENCODING), buffer.getvalue())


def read_counts_at_encoding(directory: str, vocabulary: Vocabulary) -> np.ndarray:
    """Counts by id as they were when a batch was encoded, int64 of shape (V,).

    Tokens that entered the vocabulary later have 0. A batch encoded by a version that did not store them has the
    counts of the table.
    """
    path = storage.join(directory, COUNTS_AT_ENCODING)
    if not storage.exists(path):
        return vocabulary.counts
    found = pq.read_table(pa.BufferReader(storage.read_bytes(path)))["count"].to_numpy()
    counts = np.zeros(len(vocabulary.tokens), np.int64)
    counts[: len(found)] = found
    return counts
