"""Brute-force count in plain Python: the oracle that every option of the kernel is compared with.

It walks over documents token by token and pair by pair, in the words of docs/cooccurrence.md, and
shares nothing with the kernel but the weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from wals_spark.cooccurrence.semantics import Semantics
from wals_spark.splitmix64 import GOLDEN_GAMMA, mix64
from wals_spark.token_shards import OOV, PARAGRAPH, SENTENCE, SPECIAL


def occurrence_hash(key: int, position: int, seed: int) -> int:
    """The 64-bit hash that decides whether an occurrence stays."""
    salt = _mix64(key ^ _mix64(seed + GOLDEN_GAMMA))
    return _mix64(salt + position * GOLDEN_GAMMA)


def _mix64(x: int) -> int:
    return int(mix64(np.array([x % 2**64], np.uint64))[0])


def count_pairs(
    documents: Sequence[tuple[int, Sequence[int]]],
    semantics: Semantics,
    thresholds: Mapping[int, int] | None = None,
) -> dict[tuple[int, int], int]:
    """Units of every pair.

    Parameters
    ----------
    documents : list of (key, tokens)
        Tokens are ids or markers of `wals_spark.token_shards`.
    thresholds : mapping of id to 64-bit threshold, optional
        For subsampling; an id that is absent always stays.
    """
    pairs: Counter[tuple[int, int]] = Counter()
    for key, tokens in documents:
        for stretch in _stretches(key, tokens, semantics, thresholds or {}):
            _count_stretch(stretch, semantics, pairs)
    if semantics.diagonal == "once":
        for i, j in list(pairs):
            if i == j:
                pairs[i, j] //= 2
    if semantics.diagonal == "drop":
        pairs = Counter({(i, j): units for (i, j), units in pairs.items() if i != j})
    return {pair: units for pair, units in pairs.items() if units >= max(semantics.minimum_units, 1)}


def _stretches(
    key: int, tokens: Sequence[int], semantics: Semantics, thresholds: Mapping[int, int]
) -> list[list[int | None]]:
    """Stretches that no window leaves; None holds a place."""
    stretches: list[list[int | None]] = [[]]
    position = 0
    for token in tokens:
        if token == PARAGRAPH:
            if semantics.boundary in ("paragraph", "sentence"):
                stretches.append([])
            continue
        if token == SENTENCE:
            if semantics.boundary == "sentence":
                stretches.append([])
            continue
        stays = token not in thresholds or occurrence_hash(key, position, semantics.seed) < thresholds[token]
        position += 1
        if token == SPECIAL or (token == OOV and semantics.oov == "boundary"):
            stretches.append([])
        elif token == OOV or not stays:
            if semantics.oov != "close_gap":
                stretches[-1].append(None)
        else:
            stretches[-1].append(token)
    return stretches


def _count_stretch(stretch: list[int | None], semantics: Semantics, pairs: Counter[tuple[int, int]]) -> None:
    for p, i in enumerate(stretch):
        if i is None:
            continue
        if semantics.self_units:
            pairs[i, i] += semantics.self_units
        for d in range(1, semantics.window_left + 1):
            if p - d >= 0 and (j := stretch[p - d]) is not None:
                pairs[i, j] += semantics.left[d - 1]
        for d in range(1, semantics.window_right + 1):
            if p + d < len(stretch) and (j := stretch[p + d]) is not None:
                pairs[i, j] += semantics.right[d - 1]
