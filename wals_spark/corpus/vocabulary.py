"""Word counts of shards -> one vocabulary. Plain NumPy and Arrow; the Spark side is in `encoding`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from wals_spark.corpus.shuffle import ShuffleRecord, pack_table, unpack_table
from wals_spark.corpus.token_counter import TokenCounter
from wals_spark.corpus.words import WordEncoder

COUNTS = pa.schema(
    [("token", pa.large_string()), ("hash", pa.uint64()), ("count", pa.int64()), ("document_count", pa.int64())]
)


class HashCollisionError(Exception):
    """Two words share a hash: the words are counted again with another seed."""


def pack_counts(encoder: WordEncoder, counter: TokenCounter, buckets: int) -> list[ShuffleRecord]:
    """The counts of a shard's words by bucket of their hash."""
    counts = counter.counts[: encoder.size]
    seen = counts > 0
    table = pa.Table.from_arrays(
        [
            pa.LargeStringArray.from_buffers(encoder.size, pa.py_buffer(encoder.starts), pa.py_buffer(encoder.heap)),
            pa.array(encoder.hashes),
            pa.array(counts),
            pa.array(counter.document_counts[: encoder.size]),
        ],
        schema=COUNTS,
    )
    bucket_of = encoder.hashes % np.uint64(buckets)
    records = []
    for bucket in range(buckets):
        rows = np.flatnonzero(seen & (bucket_of == bucket))
        if len(rows):
            records.append(ShuffleRecord(bucket, "counts", pack_table(table.take(pa.array(rows)).combine_chunks())))
    return records


@dataclass(frozen=True)
class MergedCounts:
    """The counts of a bucket: words that may enter the vocabulary, and how many there were in all."""

    table: pa.Table
    distinct: int


def merge_counts(payloads: Sequence[bytes], min_count: int, keep: pa.Array | None = None) -> MergedCounts:
    """Sum the counts of equal words.

    Parameters
    ----------
    min_count : int
        Rarer words are left out, unless they are in `keep`.
    keep : string array, optional
        Words that have an id already.

    Raises
    ------
    HashCollisionError
        Two different words have the same hash. All words of a hash meet in one bucket, so none is missed.
    """
    if not payloads:
        return MergedCounts(COUNTS.empty_table(), 0)
    table = pa.concat_tables([unpack_table(payload) for payload in payloads]).combine_chunks()
    hashes = table["hash"].to_numpy()
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    tokens = table["token"].combine_chunks().take(pa.array(order))
    if isinstance(tokens, pa.ChunkedArray):
        tokens = tokens.combine_chunks()
    same_hash = hashes[1:] == hashes[:-1]
    same_word = pc.equal(tokens[1:], tokens[:-1]).to_numpy(zero_copy_only=False)
    if (clash := np.flatnonzero(same_hash & ~same_word)).size:
        first = int(clash[0])
        raise HashCollisionError(f"{tokens[first].as_py()!r} and {tokens[first + 1].as_py()!r}")
    starts = np.flatnonzero(np.concatenate([[True], ~same_hash]))
    counts = np.add.reduceat(table["count"].to_numpy()[order], starts)
    documents = np.add.reduceat(table["document_count"].to_numpy()[order], starts)
    kept = counts >= min_count
    words = tokens.take(pa.array(starts))
    if keep is not None and len(keep):
        kept |= pc.is_in(words, value_set=keep).to_numpy(zero_copy_only=False)
    chosen = pa.array(np.flatnonzero(kept))
    columns = [words, pa.array(hashes[starts]), pa.array(counts), pa.array(documents)]
    return MergedCounts(pa.Table.from_arrays([column.take(chosen) for column in columns], schema=COUNTS), len(starts))


@dataclass(frozen=True)
class WordVocabulary:
    """A word vocabulary after a batch.

    Attributes
    ----------
    tokens : list of str
        By id: the known words, then the new ones by descending count, ties by their code points.
    counts, document_counts : int64 arrays
        Of this batch.
    hashes, hashed_ids : arrays
        The hash and id of every word that occurs in this batch.
    new : int
        How many words were added.
    """

    tokens: list[str]
    counts: npt.NDArray[np.int64]
    document_counts: npt.NDArray[np.int64]
    hashes: npt.NDArray[np.uint64]
    hashed_ids: npt.NDArray[np.int32]
    new: int


def assign_ids(table: pa.Table, known: Sequence[str], min_count: int, max_vocabulary: int | None) -> WordVocabulary:
    """Give ids to words: known ones keep theirs, new ones follow by descending count.

    Parameters
    ----------
    table : pyarrow.Table
        Words with their counts, of the schema `COUNTS`.
    known : sequence of str
        The words that have an id, by id.
    min_count : int
        New words that occur less often get none.
    max_vocabulary : int or None
        Largest number of ids, those of known words included.

    Returns
    -------
    WordVocabulary
    """
    order = pc.sort_indices(table, sort_keys=[("count", "descending"), ("token", "ascending")])
    table = table.take(order).combine_chunks()
    place = {token: index for index, token in enumerate(known)}
    counts = table["count"].to_numpy()
    if known:
        ids = np.fromiter((place.get(token, -1) for token in table["token"].to_pylist()), np.int64, len(table))
    else:
        ids = np.full(len(table), -1, np.int64)
    fresh = np.flatnonzero((ids < 0) & (counts >= min_count))
    if max_vocabulary is not None:
        fresh = fresh[: max(max_vocabulary - len(known), 0)]
    ids[fresh] = len(known) + np.arange(len(fresh))
    tokens = [*known, *table["token"].take(pa.array(fresh)).to_pylist()]
    inside = np.flatnonzero(ids >= 0)
    totals = np.zeros((2, len(tokens)), np.int64)
    totals[0, ids[inside]] = counts[inside]
    totals[1, ids[inside]] = table["document_count"].to_numpy()[inside]
    hashes = table["hash"].to_numpy()[inside]
    return WordVocabulary(tokens, totals[0], totals[1], hashes, ids[inside].astype(np.int32), len(fresh))


def vocabulary_rows(
    tokens: Sequence[str], counts: Any, document_counts: Any, special: frozenset[int] = frozenset()
) -> pa.Table:
    """Rows of the table ``vocabulary``.

    Parameters
    ----------
    tokens : sequence of str
        By id.
    counts, document_counts : int64 array of shape (tokens,)
    special : frozenset of int
        Ids of special tokens.

    Returns
    -------
    pyarrow.Table
    """
    is_special = np.zeros(len(tokens), bool)
    is_special[list(special)] = True
    return pa.table(
        {
            "token_id": pa.array(np.arange(len(tokens), dtype=np.int32)),
            "token": pa.array(tokens, pa.string()),
            "count": pa.array(counts, pa.int64()),
            "document_count": pa.array(document_counts, pa.int64()),
            "is_special": pa.array(is_special),
        }
    )
