"""Two frequencies per token: what pretraining saw, what the corpus saw, and the head bias between them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from wals_spark import storage, token_shards
from wals_spark.errors import InputError
from wals_spark.tokenizer import LoadedTokenizer

SMOOTHING = 0.5
_ZIPF_SHIFT = 2.7
_RANK_TOKENS = 1e9
_RANKED_VOCABULARIES = frozenset({"0c964ed84a211b99"})
"""Hashes of vocabularies whose ids are sorted by falling pretraining frequency: roberta-base."""


def exposure_counts(how: str, counts: np.ndarray, tokenizer: LoadedTokenizer, protected: np.ndarray) -> np.ndarray:
    """n_i: how often pretraining saw each token, float64 (V,); only ratios matter to the blend.

    Parameters
    ----------
    how : str
        ``corpus``: the corpus' own counts (it is what the model was trained on). ``rank``: by Zipf's law
        from the id, n_i proportional to 1 / (rank + 2.7). ``auto``: rank for roberta-base's vocabulary,
        corpus for others. Anything else is the path of a table with the columns token_id and count (a
        Parquet file or directory such as a warehouse's vocabulary, or a CSV file).
    """
    if how == "auto":
        how = "rank" if tokenizer.hash in _RANKED_VOCABULARIES else "corpus"
    if how == "corpus":
        return counts.astype(np.float64)
    if how == "rank":
        ordinary = np.setdiff1d(np.arange(len(counts)), protected)
        n = np.zeros(len(counts))
        n[ordinary] = 1 / (np.arange(len(ordinary)) + 1 + _ZIPF_SHIFT)
        return n * (_RANK_TOKENS / n.sum())
    return read_counts(how, len(counts))


def count_encoded_tokens(directories: Sequence[str], size: int) -> np.ndarray:
    """Tokens of encoded batches, int64 (size,): one pass over the shards, on as many threads as there are cores."""

    def count(shard: token_shards.TokenShard) -> np.ndarray:
        total = np.zeros(size, np.int64)
        for chunk in token_shards.read_shards([shard.path]):
            ids = chunk.tokens[chunk.overlap :]
            total += np.bincount(ids[ids >= 0], minlength=size)
        return total

    shards = [shard for directory in directories for shard in token_shards.list_shards(directory)]
    with ThreadPoolExecutor() as pool:
        return sum(pool.map(count, shards), np.zeros(size, np.int64))


def read_counts(path: str, size: int, key: str = "inject.exposure") -> np.ndarray:
    """Counts by token id from a table, float64 (size,); ids that it lacks count 0.

    Raises
    ------
    InputError
        No such table, columns that are missing, ids out of range or negative counts.
    """
    import pyarrow.csv
    import pyarrow.parquet as pq

    if not storage.exists(path):
        raise InputError(f"{key}: there is nothing at {path}; expected auto, rank, corpus or the path of a table")
    fs, inner = storage.filesystem(path)
    if path.endswith(".csv"):
        table = pyarrow.csv.read_csv(fs.open_input_stream(inner))
    else:
        table = pq.read_table(inner, filesystem=fs)
    missing = {"token_id", "count"} - set(table.column_names)
    if missing:
        raise InputError(
            f"{key}: {path} lacks {', '.join(sorted(missing))} (it has {', '.join(table.column_names)}); expected "
            "token_id and count"
        )
    ids, values = table["token_id"].to_numpy(), table["count"].to_numpy().astype(np.float64)
    if len(ids) and (ids.min() < 0 or ids.max() >= size):
        raise InputError(f"{key}: {path} has ids up to {ids.max()}, the vocabulary has {size} tokens")
    if not (values >= 0).all():
        raise InputError(f"{key}: {path} has negative or missing counts")
    return np.bincount(ids, values, size)


def check_exposure(how: str) -> None:
    """`InputError` when `exposure_counts` could not read it."""
    if how not in ("auto", "corpus", "rank") and not (os.path.exists(how) or storage.exists(how)):
        raise InputError(f"inject.exposure: found {how!r}, expected auto, rank, corpus or the path of a table")


def log_unigram(counts: np.ndarray) -> np.ndarray:
    """log((c_i + 1/2) / sum (c + 1/2)), float64 (V,)."""
    smoothed = counts.astype(np.float64) + SMOOTHING
    return np.log(smoothed / smoothed.sum())


def adjusted_bias(
    bias: np.ndarray, counts: np.ndarray, exposure_counts: np.ndarray, protected: np.ndarray, strength: float
) -> np.ndarray:
    """The head bias + strength (log p_corpus - log p_pretraining), float64 (V,); protected entries stay.

    Parameters
    ----------
    bias : (V,)
    counts, exposure_counts : (V,)
    protected : ids whose entry stays
    strength : 0 (nothing) to 1 (all the way to the corpus)
    """
    moved = bias.astype(np.float64) + strength * (log_unigram(counts) - log_unigram(exposure_counts))
    moved[protected] = bias[protected]
    return moved
