"""The vocabulary over batches: ids never move, every version is recorded, counts are the sum of the batches.

``_encoded/versions.json`` lists the versions; ``_encoded/<batch_id>/counts.parquet`` holds the counts of a
batch, so that a batch that is encoded again replaces its own share.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wals_spark import storage
from wals_spark.errors import InputError
from wals_spark.runs import now
from wals_spark.stage import Context
from wals_spark.tables.vocabulary import read_vocabulary

ENCODED = "_encoded"
COUNTS = "counts.parquet"
VERSIONS = "versions.json"


@dataclass(frozen=True)
class VocabularyVersion:
    """A state of the vocabulary.

    Attributes
    ----------
    version : int
    size : int
    vocabulary_hash : str
    batch_id : str
        The batch that made it.
    first_new_id : int
        Ids from here on were new in this version.
    settings : mapping
        What a token is: all batches agree on it.
    """

    version: int
    size: int
    vocabulary_hash: str
    batch_id: str
    first_new_id: int
    settings: Mapping[str, Any]
    at: str = ""


def encoded_directory(context: Context) -> str:
    """The directory of all encoded batches."""
    return storage.join(context.manifests.warehouse, ENCODED)


def other_batches(context: Context) -> list[str]:
    """The encoded batches beside the one being made."""
    own = context.config.corpus.batch_id
    return [
        key
        for key in context.manifests.keys("vocabulary")
        if key != own and storage.exists(storage.join(encoded_directory(context), key, COUNTS))
    ]


def current_version(context: Context) -> VocabularyVersion | None:
    """The newest version, or None."""
    path = storage.join(encoded_directory(context), VERSIONS)
    if not storage.exists(path):
        return None
    return VocabularyVersion(**storage.read_json(path)["versions"][-1])


def known_tokens(context: Context, others: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
    """The tokens that have an id already, because other batches use them; none where there are no others.

    Raises
    ------
    InputError
        The other batches were encoded with another tokenizer, pattern or case.
    """
    newest = current_version(context)
    if not others or newest is None:
        return []
    if dict(newest.settings) != dict(settings):
        raise InputError(
            f"batch {context.config.corpus.batch_id!r} would be encoded with {_shown(settings)}, and "
            f"{', '.join(map(repr, others[:5]))} with {_shown(newest.settings)}; batches of one warehouse share their "
            "vocabulary: use the same settings, or another warehouse"
        )
    return read_vocabulary(context.tables).tokens


def _shown(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value!r}" for key, value in settings.items())


def write_counts(directory: str, counts: Any, document_counts: Any) -> None:
    """Store the counts of a batch beside its shards."""
    ids = np.flatnonzero(counts)
    table = pa.table(
        {
            "token_id": pa.array(ids.astype(np.int32)),
            "count": pa.array(counts[ids]),
            "document_count": pa.array(document_counts[ids]),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    storage.write_bytes(storage.join(directory, COUNTS), buffer.getvalue())


def content_hash(*counts: Any) -> str:
    """Of int64 arrays, 16 hexadecimal digits: a batch encoded again with another vocabulary has another one."""
    digest = blake2b(digest_size=8)
    for array in counts:
        digest.update(np.ascontiguousarray(array, "<i8").tobytes())
    return digest.hexdigest()


def summed_counts(context: Context, batches: Sequence[str], size: int) -> Any:
    """Counts and document counts over batches, int64 of shape (2, size)."""
    totals = np.zeros((2, size), np.int64)
    for batch in batches:
        content = storage.read_bytes(storage.join(encoded_directory(context), batch, COUNTS))
        table = pq.read_table(pa.BufferReader(content))
        ids = table["token_id"].to_numpy()
        totals[0, ids] += table["count"].to_numpy()
        totals[1, ids] += table["document_count"].to_numpy()
    return totals


def record_version(
    context: Context, others: Sequence[str], settings: Mapping[str, Any], size: int, vocabulary_hash: str, known: int
) -> VocabularyVersion:
    """Append a version of the vocabulary where its tokens changed.

    Parameters
    ----------
    context : Context
    others : sequence of str
        Other encoded batches; without any, the history begins again.
    settings : mapping of str to object
        What a token is.
    size : int
        Number of tokens.
    vocabulary_hash : str
    known : int
        Number of tokens that had an id before.

    Returns
    -------
    VocabularyVersion
        The current one.
    """
    path = storage.join(encoded_directory(context), VERSIONS)
    history = storage.read_json(path)["versions"] if storage.exists(path) else []
    number = history[-1]["version"] if history else 0
    if not others:
        history = []
    if history and history[-1]["vocabulary_hash"] == vocabulary_hash:
        return VocabularyVersion(**history[-1])
    batch_id = context.config.corpus.batch_id
    version = VocabularyVersion(number + 1, size, vocabulary_hash, batch_id, known, dict(settings), now())
    storage.write_json(path, {"versions": [*history, asdict(version)]})
    return version
