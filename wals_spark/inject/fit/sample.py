"""A sample of a corpus' sequences, drawn in Spark: those with the smallest hash, whatever the partitioning.

A task reads its record batches of token shards once and hands over only the sequences whose hash is below a bound that
about as many as wanted stay below, and of these no more than wanted.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wals_spark.mlm.text_sequences import (
    TextSequences,
    concatenate_sequences,
    cut_documents,
    no_sequences,
    sampling_hash,
    smallest_sequences,
)
from wals_spark.token_shards import BatchRange, list_shards, read_batch_ranges, split_shards

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)

RANGE_TOKENS = 4 << 20
"""Tokens of a range of record batches that a task reads."""
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
