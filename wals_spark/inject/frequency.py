r"""Two frequencies per token, by pretraining (n) and by the corpus (c), and the head bias between them.

::

    bias'_i = bias_i + strength (log p_c(i) - log p_n(i)) ,    log p_c(i) = log((c_i + 1/2) / sum_j (c_j + 1/2))

The bias of a softmax head holds the log prior of each token; this moves it from the prior of pretraining to that of the
corpus, as logit adjustment does for classes.

References
----------
A. K. Menon, S. Jayasumana, A. S. Rawat, H. Jain, A. Veit, S. Kumar, "Long-tail learning via logit adjustment",
ICLR 2021.
"""

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
    """n_i: how often pretraining saw each token; only ratios matter to the blend.

    Parameters
    ----------
    how : str
        ``corpus``: the corpus' own counts (the model was trained on it). ``rank``: by Zipf's law
        from the id, n_i proportional to 1 / (rank + 2.7). ``auto``: rank for roberta-base's vocabulary,
        corpus for others. Anything else is the path of a table with the columns token_id and count (a
        Parquet file or directory such as a warehouse's vocabulary, or a CSV file).
    counts : int64 array of shape (V,)
        Of the corpus.
    tokenizer : LoadedTokenizer
        Of the checkpoint.
    protected : int64 array of shape (p,)
        Ids that have no rank.

    Returns
    -------
    float64 array of shape (V,)

    Raises
    ------
    InputError
        See `read_counts`.
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
    """Counts of the tokens of encoded batches, int64 (size,): one pass over the shards, a thread per core."""

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
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    if not storage.exists(path):
        raise InputError(f"{key}: there is nothing at {path}; expected auto, rank, corpus or the path of a table")
    fs, inner = storage.filesystem(path)
    try:
        if path.endswith(".csv"):
            table = pyarrow.csv.read_csv(fs.open_input_stream(inner))
        else:
            table = pq.read_table(inner, filesystem=fs)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{key}: {path} is neither .csv nor Parquet ({str(error).splitlines()[0]:.120}); convert it"
        ) from None
    missing = {"token_id", "count"} - set(table.column_names)
    if missing:
        raise InputError(
            f"{key}: {path} lacks {', '.join(sorted(missing))} (it has {', '.join(table.column_names)}); expected "
            "token_id and count"
        )
    kinds = {name: table[name].type for name in ("token_id", "count")}
    numbers = pa.types.is_integer(kinds["count"]) or pa.types.is_floating(kinds["count"])
    if not pa.types.is_integer(kinds["token_id"]) or table["token_id"].null_count or not numbers:
        raise InputError(
            f"{key}: {path} has token_id of type {kinds['token_id']} with {table['token_id'].null_count} missing and "
            f"count of type {kinds['count']}; expected whole numbers, and numbers"
        )
    ids, values = table["token_id"].to_numpy(), table["count"].to_numpy().astype(np.float64)
    if len(ids) and (ids.min() < 0 or ids.max() >= size):
        raise InputError(f"{key}: {path} has ids up to {ids.max()}, the vocabulary has {size} tokens")
    if not (values >= 0).all():
        raise InputError(f"{key}: {path} has negative or missing counts")
    return np.bincount(ids.astype(np.int64), values, size)


def check_exposure(how: str) -> None:
    """Raise `InputError` for an ``inject.exposure`` that is neither a word that `exposure_counts` knows nor a path."""
    if how not in ("auto", "corpus", "rank") and not (os.path.exists(how) or storage.exists(how)):
        raise InputError(f"inject.exposure: found {how!r}, expected auto, rank, corpus or the path of a table")


def log_unigram(counts: np.ndarray) -> np.ndarray:
    """log((c_i + 1/2) / sum (c + 1/2)), float64 (V,)."""
    smoothed = counts.astype(np.float64) + SMOOTHING
    return np.log(smoothed / smoothed.sum())


def adjusted_bias(
    bias: np.ndarray, counts: np.ndarray, exposure: np.ndarray, protected: np.ndarray, strength: float
) -> np.ndarray:
    """The bias'_i of the module's formula; protected entries stay.

    Parameters
    ----------
    bias : float array of shape (V,)
    counts : float array of shape (V,)
        c_i.
    exposure : float array of shape (V,)
        n_i.
    protected : int64 array of shape (p,)
        Ids whose entry stays.
    strength : float
        From 0 (nothing) to 1 (all the way to the corpus).

    Returns
    -------
    float64 array of shape (V,)
    """
    moved = bias.astype(np.float64) + strength * (log_unigram(counts) - log_unigram(exposure))
    moved[protected] = bias[protected]
    return moved
