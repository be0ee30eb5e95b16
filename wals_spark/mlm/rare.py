"""Rare-token accuracy: two probes, by bucket of a token's count in the counted corpus.

Probe ``target`` hides the token itself: it tests the output row and the head bias. Probe ``context`` hides
a frequent token within five positions of it: it tests the input row. Both hide by ``<mask>`` only, at
most a given share of a sequence, with at most `PER_TYPE` occurrences of a type. The frequent buckets are
always there too: what lifts rare tokens and hurts frequent ones is a loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wals_spark.errors import InputError
from wals_spark.mlm.data import NO_DOCUMENT, MaskedSequences, PackedSequences, SpecialIds, mask_positions

EDGES = (0, 1, 5, 20, 100, 1_000, 10_000)
"""Bucket b holds the counts from EDGES[b] up to below EDGES[b + 1]."""
FREQUENT = 1_000
REACH = 5
PER_TYPE = 50
MIN_TYPES = 30
"""A bucket with fewer types is not reported."""


def bucket_names() -> tuple[str, ...]:
    """``0``, ``1-4``, ... ``10000+``, in the order of `EDGES`."""
    names = []
    for low, high in zip(EDGES, (*EDGES[1:], None), strict=True):
        names.append(f"{low}+" if high is None else f"{low}-{high - 1}" if high - 1 > low else str(low))
    return tuple(names)


def bucket_of(counts: np.ndarray) -> np.ndarray:
    """The bucket of each count, int32."""
    return (np.searchsorted(EDGES, counts, side="right") - 1).astype(np.int32)


@dataclass(frozen=True)
class Probe:
    """Targets with the token whose rarity they test.

    Attributes
    ----------
    masked : MaskedSequences
    bucket : int32 array of shape (t,)
    token_type : int32 array of shape (t,)
        The id of the token whose count gave the bucket: the target itself, or its rare neighbour.
    """

    masked: MaskedSequences
    bucket: np.ndarray
    token_type: np.ndarray


@dataclass(frozen=True)
class _Candidates:
    """Positions that could be hidden: (row, column), the token tested there and its bucket; arrays of one length."""

    row: np.ndarray
    column: np.ndarray
    token_type: np.ndarray
    bucket: np.ndarray

    def take(self, index: np.ndarray) -> _Candidates:
        return _Candidates(self.row[index], self.column[index], self.token_type[index], self.bucket[index])


def target_probe(
    packed: PackedSequences,
    counts: np.ndarray,
    special: SpecialIds,
    seed: int,
    *,
    per_bucket: int,
    fraction: float = 0.15,
) -> Probe:
    """Hide the tokens themselves, which tests the output row and the head bias.

    Parameters
    ----------
    packed : PackedSequences
    counts : int64 array of shape (V,)
    special : SpecialIds
    seed : int
    per_bucket : int
        Targets per bucket at most.
    fraction : float
        Share of a sequence hidden at most.

    Returns
    -------
    Probe
    """
    _check(counts, packed)
    generator = np.random.default_rng([seed, 2])
    row, column = np.nonzero(_ordinary(packed, special))
    token_type = packed.ids[row, column]
    candidates = _Candidates(row, column, token_type, bucket_of(counts[token_type]))
    chosen = _choose(candidates, packed.ids.shape[1], generator, per_bucket, fraction)
    return _probe(packed, candidates.take(chosen), special, generator)


def context_probe(
    packed: PackedSequences,
    counts: np.ndarray,
    special: SpecialIds,
    seed: int,
    *,
    per_bucket: int,
    fraction: float = 0.15,
) -> Probe:
    """Hide a frequent token within `REACH` positions of each token, which tests the input row of the token.

    Parameters
    ----------
    packed : PackedSequences
    counts : int64 array of shape (V,)
    special : SpecialIds
    seed : int
    per_bucket : int
        Targets per bucket at most.
    fraction : float
        Share of a sequence hidden at most.

    Returns
    -------
    Probe
    """
    _check(counts, packed)
    generator = np.random.default_rng([seed, 3])
    ordinary = _ordinary(packed, special)
    frequent = ordinary & (counts[packed.ids] >= FREQUENT)
    row, column = np.nonzero(ordinary)
    length = packed.ids.shape[1]
    best = np.full(len(row), 2.0, np.float32)
    neighbour = np.full(len(row), -1, np.int64)
    for shift in (*range(-REACH, 0), *range(1, REACH + 1)):
        other = column + shift
        inside = (other >= 0) & (other < length)
        other = np.clip(other, 0, length - 1)
        usable = inside & frequent[row, other] & (packed.document[row, other] == packed.document[row, column])
        draw = generator.random(len(row), dtype=np.float32)
        better = usable & (draw < best)
        best[better] = draw[better]
        neighbour[better] = other[better]
    found = neighbour >= 0
    token_type = packed.ids[row[found], column[found]]
    candidates = _Candidates(row[found], neighbour[found], token_type, bucket_of(counts[token_type]))
    chosen = _choose(candidates, length, generator, per_bucket, fraction)
    return _probe(packed, candidates.take(chosen), special, generator)


def _check(counts: np.ndarray, packed: PackedSequences) -> None:
    largest = int(packed.ids.max(initial=0))
    if largest >= len(counts):
        raise InputError(
            f"a token id {largest} has no count: {len(counts)} counts were given; "
            "the counts are of another tokenizer than the sequences"
        )


def _ordinary(packed: PackedSequences, special: SpecialIds) -> np.ndarray:
    return (packed.document != NO_DOCUMENT) & ~np.isin(packed.ids, list(special.all))


def _choose(
    candidates: _Candidates, length: int, generator: np.random.Generator, per_bucket: int, fraction: float
) -> np.ndarray:
    """Indices of the candidates taken: rarest bucket first, at random within a bucket, within all limits."""
    order = np.lexsort((generator.random(len(candidates.row)), candidates.bucket))
    position = candidates.row[order].astype(np.int64) * length + candidates.column[order]
    order = order[_rank_within(position) == 0]
    order = order[_rank_within(candidates.token_type[order]) < PER_TYPE]
    order = order[_rank_within(candidates.bucket[order]) < per_bucket]
    per_sequence = max(1, int(fraction * length))
    return order[_rank_within(candidates.row[order]) < per_sequence]


def _rank_within(labels: np.ndarray) -> np.ndarray:
    """How many earlier entries carry the same label, for each entry."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    new = np.r_[True, ordered[1:] != ordered[:-1]] if len(ordered) else np.empty(0, bool)
    starts = np.nonzero(new)[0]
    within = np.arange(len(labels)) - np.repeat(starts, np.diff(np.r_[starts, len(labels)]))
    rank = np.empty(len(labels), np.int64)
    rank[order] = within
    return rank


def _probe(packed: PackedSequences, chosen: _Candidates, special: SpecialIds, generator: np.random.Generator) -> Probe:
    """Keep only the sequences with targets, in order, and hide the targets."""
    chosen = chosen.take(np.lexsort((chosen.column, chosen.row)))
    kept, row = np.unique(chosen.row, return_inverse=True)
    part = PackedSequences(packed.ids[kept], packed.document[kept], packed.documents)
    masked = mask_positions(part, row, chosen.column, special, generator, always_mask=True)
    return Probe(masked, chosen.bucket, chosen.token_type.astype(np.int32))
