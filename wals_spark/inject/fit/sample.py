"""A sample of a corpus' sequences, drawn in Spark: those with the smallest hash, whatever the partitioning.

A task reads its record batches of token shards once and hands over only the sequences whose hash is below a bound that
about as many as wanted stay below, and of these no more than wanted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wals_spark.errors import InputError
from wals_spark.mlm.state_files import SPLITS
from wals_spark.mlm.text_sequences import (
    TextSequences,
    concatenate_sequences,
    cut_documents,
    no_sequences,
    sampling_hash,
    smallest_sequences,
    validation_documents,
)
from wals_spark.token_shards import BatchRange, list_shards, read_batch_ranges, split_shards

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from wals_spark.config import StatesConfig
    from wals_spark.stage import Context
    from wals_spark.tokenizer import LoadedTokenizer

RANGE_TOKENS = 4 << 20
"""Tokens of a range of record batches that a task reads."""
LEAST_SEQUENCES = 32
"""Sequences that a sample must have, half of them left to fit on; from fewer no gain can be told from chance."""
_UNKNOWN = ("<unk>", "[UNK]")
_WIDENED = 8.0
"""By how much the bound grows where too few sequences stay below it."""


@dataclass(frozen=True)
class Sampling:
    """What is drawn.

    Attributes
    ----------
    count : int
        Sequences at most.
    length : int
        L, tokens of a sequence.
    seed : int
    unknown : int or None
        The id that special tokens in the text become; None leaves them out.
    """

    count: int
    length: int
    seed: int
    unknown: int | None = None


def sample_sequences(spark: SparkSession, directories: Sequence[str], sampling: Sampling) -> TextSequences:
    """The different sequences of some batches of token shards with the smallest hashes, in the order of the hash.

    Parameters
    ----------
    spark : SparkSession
    directories : sequence of str
        Of token shards.
    sampling : Sampling

    Returns
    -------
    TextSequences
        ``sampling.count`` of them, or all that there are.
    """
    ranges = split_shards((shard for directory in directories for shard in list_shards(directory)), RANGE_TOKENS)
    tokens = sum(part.tokens for part in ranges)
    if not tokens:
        return no_sequences()
    tasks = min(len(ranges), 4 * spark.sparkContext.defaultParallelism)
    share = first_share(sampling, tokens)
    while True:
        bound = share  # of this round, in the closure

        def draw(parts: Iterator[BatchRange], bound: float = bound) -> Iterator[TextSequences]:
            yield draw_sequences(list(parts), sampling, bound)

        drawn = spark.sparkContext.parallelize(ranges, tasks).mapPartitions(draw).collect()
        found = smallest_sequences(concatenate_sequences(drawn), sampling.count, sampling.seed)
        if len(found) >= sampling.count or share >= 1:
            return found
        share = min(1.0, share * _WIDENED)


def first_share(sampling: Sampling, tokens: int) -> float:
    """A share of all hashes below which nearly surely lie enough sequences of some tokens, if none is a duplicate."""
    expected = tokens / (sampling.length - 2)
    return min(1.0, (sampling.count + 6 * math.sqrt(sampling.count) + 64) / expected)


def draw_sequences(ranges: Iterable[BatchRange], sampling: Sampling, share: float = 1.0) -> TextSequences:
    """The sample of some ranges of shards, from the sequences with a hash below `share` of all hashes.

    Parameters
    ----------
    ranges : iterable of BatchRange
    sampling : Sampling
    share : float
        Above 0, at most 1.

    Returns
    -------
    TextSequences
    """
    held = no_sequences()
    for chunk in read_batch_ranges(ranges, context=0):
        cut = cut_documents(
            chunk.tokens, chunk.offsets, chunk.keys, sampling.length, first=chunk.first, unknown=sampling.unknown
        )
        if share < 1:
            cut = cut.take(sampling_hash(cut, sampling.seed) < np.uint64(share * 2.0**64))
        held = smallest_sequences(concatenate_sequences([held, cut]), sampling.count, sampling.seed)
    return held


def draw_sample(
    context: Context, domain: Sequence[str], general: Sequence[str], tokenizer: LoadedTokenizer
) -> tuple[TextSequences, list[str]]:
    """Draw the sequences of all splits, sorted by split.

    Parameters
    ----------
    context : Context
    domain : sequence of str
        Directories of token shards.
    general : sequence of str
        Those of general text.
    tokenizer : LoadedTokenizer

    Returns
    -------
    sequences : TextSequences
    splits : list of str
        The split of each.

    Raises
    ------
    InputError
        There are fewer than `LEAST_SEQUENCES` sequences, or documents are all held out.
    """
    settings, seed = context.config.states, context.config.seed
    unknown = next((index for name in _UNKNOWN if (index := tokenizer.tokenizer.token_to_id(name)) is not None), None)
    sampling = Sampling(settings.sequences, settings.sequence_length, seed, unknown)
    found = sample_sequences(context.spark, domain, sampling)
    held = _held_out(found, settings)
    parts = [found.take(~held), found.take(held)]
    if general and settings.general_sequences:
        wanted = Sampling(settings.general_sequences, settings.sequence_length, seed, unknown)
        parts.append(sample_sequences(context.spark, general, wanted))
    splits = [name for name, part in zip(SPLITS, parts, strict=False) for _ in range(len(part))]
    return concatenate_sequences(parts), splits


def _held_out(found: TextSequences, settings: StatesConfig) -> np.ndarray:
    """Which sequences are held out; refuses a sample that leaves too few to fit on."""
    documents = len(np.unique(found.document))
    if len(found) < LEAST_SEQUENCES:
        raise InputError(
            f"the text has {len(found)} different sequences of {settings.sequence_length} tokens in {documents} "
            f"documents; expected at least {LEAST_SEQUENCES}: from fewer, a gain of fitted rows cannot be told from "
            "chance. Add text, or lower states.sequence_length"
        )
    if documents < 2 and settings.validation_fraction > 0:
        raise InputError(
            f"all {len(found)} sequences are of one document, so no document can be held out to choose penalties on: "
            "cut the text into documents (corpus.path with a document per file or line), or set "
            "states.validation_fraction to 0"
        )
    held = validation_documents(found.document, settings.validation_fraction)
    if (~held).sum() < LEAST_SEQUENCES // 2:
        raise InputError(
            f"states.validation_fraction {settings.validation_fraction} holds out {int(held.sum())} of {len(found)} "
            f"sequences: {int((~held).sum())} are left to fit on, expected at least {LEAST_SEQUENCES // 2}; lower it, "
            "or add documents"
        )
    return held
