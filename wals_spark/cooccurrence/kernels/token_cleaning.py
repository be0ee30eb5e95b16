"""From the tokens and markers of documents to ids that count and the segments that no window leaves."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from wals_spark.cooccurrence.kernels.intrinsics import U, loop
from wals_spark.splitmix64 import GOLDEN_GAMMA, mix64

HOLD, REMOVE, BREAK = 0, 1, 2
"""What a marker does: keep a place that never counts, vanish, or end the window."""

_mix64 = loop(mix64)


class DocumentTokens(NamedTuple):
    """Documents as they are stored.

    Attributes
    ----------
    tokens : int32 array of shape (n,)
    offsets : int64 array of shape (documents + 1,)
    keys : uint64 array of shape (documents,)
    first : int
        Position of ``tokens[0]`` in document 0.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    keys: np.ndarray
    first: int


class CleaningRules(NamedTuple):
    """What markers, unknown tokens and subsampling do.

    Attributes
    ----------
    actions : int64 array of shape (5,)
        What the marker -a does, at index a; index 0 unused.
    size : int
        V.
    thresholds : uint64 array of shape (V,) or (0,)
        See `semantics.keep_thresholds`; empty = no subsampling.
    seed : int
        Of the subsampling.
    dropped : int
        What an occurrence that was subsampled away does: `HOLD` or `REMOVE`.
    """

    actions: np.ndarray
    size: int
    thresholds: np.ndarray
    seed: int
    dropped: int


@loop
def clean_tokens(documents, rules, out, bounds):
    """Apply markers, out-of-vocabulary rule and subsampling to documents.

    An occurrence at position p of the document with key h stays where
    ``mix64(mix64(h ^ mix64(seed + gamma)) + p gamma) < threshold``, gamma being SplitMix64's increment.

    Parameters
    ----------
    documents : DocumentTokens
    rules : CleaningRules
    out : uint32 array of shape (n,)
        Receives the ids; V where something holds a place.
    bounds : int64 array of shape (1 + documents + breaks,)
        Receives the starts of the segments and the end of the last; an end may repeat.

    Returns
    -------
    (int, int, int, int, int)
        Ids written, bounds written, kept, subsampled, index of a token outside the vocabulary or -1.
    """
    tokens, offsets, keys, first = documents
    actions, size, thresholds, seed, dropped = rules
    n = U(0)
    s = 0
    kept = 0
    subsampled = 0
    bounds[0] = 0
    for d in range(len(keys)):
        position = U(first) if d == 0 else U(0)
        salt = _mix64(keys[d] ^ _mix64(U(seed) + U(GOLDEN_GAMMA)))
        for i in range(offsets[d], offsets[d + 1]):
            t = tokens[i]
            if t >= 0:
                if t >= size:
                    return n, s, kept, subsampled, i
                if len(thresholds) > 0:
                    threshold = thresholds[t]
                    always = threshold == U(0xFFFFFFFFFFFFFFFF)
                    if not always and _mix64(salt + position * U(GOLDEN_GAMMA)) >= threshold:
                        subsampled += 1
                        if dropped == HOLD:
                            out[n] = size
                            n += U(1)
                        position += U(1)
                        continue
                out[n] = t
                n += U(1)
                kept += 1
                position += U(1)
            else:
                if t < -4:
                    return n, s, kept, subsampled, i
                if t in (-1, -4):
                    position += U(1)
                action = actions[-t]
                if action == HOLD:
                    out[n] = size
                    n += U(1)
                elif action == BREAK:
                    s += 1
                    bounds[s] = n
        s += 1
        bounds[s] = n
    return n, s + 1, kept, subsampled, -1
