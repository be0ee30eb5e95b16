"""The vocabulary table in memory: a token and a count per id."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from wals_spark import schemas
from wals_spark.errors import InputError
from wals_spark.tables.base import TableStore
from wals_spark.tokenizer import vocabulary_hash


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
