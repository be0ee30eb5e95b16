"""Ids of words that are local to a shard, and their translation to the ids of the vocabulary."""

from __future__ import annotations

import io
import posixpath
from typing import Any

import numpy as np
import numpy.typing as npt

from wals_spark import storage
from wals_spark.token_shards.layout import OOV, PARAGRAPH, SENTENCE, SPECIAL, Ints

VOCABULARY = "vocabulary.npy"
VOCABULARY_DTYPE = np.dtype([("hash", "<u8"), ("id", "<i4")])


def write_local_words(shard_path: str, hashes: npt.NDArray[np.uint64]) -> None:
    """Store the hash of each local word of a shard, beside it."""
    _save(_words_path(shard_path), hashes)


def write_vocabulary(directory: str, hashes: npt.NDArray[np.uint64], ids: Ints) -> None:
    """Store the hash of each word of the vocabulary: what turns local ids into global ones."""
    table = np.empty(len(hashes), VOCABULARY_DTYPE)
    order = np.argsort(hashes, kind="stable")
    table["hash"], table["id"] = hashes[order], ids[order]
    _save(storage.join(directory, VOCABULARY), table)


def local_to_global(path: str) -> Ints | None:
    """The translation of a shard's local ids, or None where its ids are global.

    Parameters
    ----------
    path : str
        Of the shard.

    Returns
    -------
    int32 array of shape (words + 4,) or None
        Global id or `OOV` of each local word, then `SPECIAL`, `SENTENCE`, `PARAGRAPH` and `OOV`: negative ids
        index these, so markers map to themselves.
    """
    words = _words_path(path)
    if not storage.exists(words):
        return None
    hashes = _load(words)
    table = _load(storage.join(posixpath.dirname(path), VOCABULARY))
    ids = np.full(len(hashes) + 4, OOV, np.int32)
    if len(table):
        place = np.minimum(np.searchsorted(table["hash"], hashes), len(table) - 1)
        ids[: len(hashes)] = np.where(table["hash"][place] == hashes, table["id"][place], OOV)
    ids[len(hashes) :] = [SPECIAL, SENTENCE, PARAGRAPH, OOV]
    return ids


def _words_path(shard_path: str) -> str:
    return shard_path.removesuffix(".arrow") + ".words.npy"


def _save(path: str, array: npt.NDArray[Any]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    storage.write_bytes(path, buffer.getvalue())


def _load(path: str) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = np.load(io.BytesIO(storage.read_bytes(path)), allow_pickle=False)
    return array
