"""The positions of every token with the part of its window that counts: a counting sort."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from wals_spark.cooccurrence.kernels.intrinsics import U, loop

PREFETCH_DISTANCE = 4
"""Positions between a prefetch and its use; the position list is padded by as many."""


class TokenSegments(NamedTuple):
    """Ids with the segments that no window leaves.

    Attributes
    ----------
    ids : uint32 array of shape (n,)
        0 .. V; V keeps the place of a token that never counts.
    bounds : int64 array of shape (segments + 1,)
        Segment s is ``ids[bounds[s]:bounds[s + 1]]``.
    owned : int64 array of shape (segments,)
        A pair counts where its later token is at or after ``owned[s]``; what is before is context only.
    """

    ids: np.ndarray
    bounds: np.ndarray
    owned: np.ndarray


class Occurrences(NamedTuple):
    """Positions by token.

    Attributes
    ----------
    ids : uint32 array of shape (n,)
        0 .. V; V keeps the place of a token that never counts.
    start : int64 array of shape (V + 2,)
        The positions of token t are at ``start[t] .. start[t + 1] - 1`` of the lists.
    positions, reach : uint32 arrays, longer than all lists by `PREFETCH_DISTANCE`
        Index into `ids`, and ``left | right << 8 | first_right << 16``: the window is distances 1 .. left to the
        left and first_right .. right to the right.
    owners : int64 array of shape (V + 1,) or (0,)
        Occurrences that are no context; read where ``self_units`` > 0.
    """

    ids: np.ndarray
    start: np.ndarray
    positions: np.ndarray
    reach: np.ndarray
    owners: np.ndarray


@loop
def start_positions(ids, wanted, start):
    """Where the list of every wanted token starts; returns the length of all lists.

    Parameters
    ----------
    ids : uint32 array of shape (n,)
    wanted : uint8 array of shape (V + 1,)
    start : int64 array of shape (V + 2,), zeros
        Receives the first list index of every token.

    Returns
    -------
    int
    """
    for i in range(len(ids)):
        t = U(ids[U(i)])
        start[t + U(1)] += wanted[t]
    for v in range(len(start) - 1):
        start[v + 1] += start[v]
    return start[len(start) - 1]


@loop
def list_positions(segments, wanted, window_left, window_right, occurrences):
    """List the positions of every wanted token with the part of its window that counts.

    Parameters
    ----------
    segments : TokenSegments
    wanted : uint8 array of shape (V + 1,)
    window_left, window_right : int
        At most 255.
    occurrences : Occurrences
        With the starts of `start_positions`; its positions and reaches are written.
    """
    ids, bounds, owned = segments
    start, positions, reach = occurrences.start, occurrences.positions, occurrences.reach
    total = start[len(start) - 1]
    for s in range(len(owned)):
        low, high, own = bounds[s], bounds[s + 1], owned[s]
        for i in range(low, high):
            t = U(ids[U(i)])
            if not wanted[t]:
                continue
            k = U(start[t])
            start[t] += 1
            positions[k] = i
            right = min(window_right, high - 1 - i)
            if i >= own:
                reach[k] = U(min(window_left, i - low)) | (U(right) << U(8)) | (U(1) << U(16))
            else:
                ahead = min(own - i, 256)
                reach[k] = (U(right) << U(8)) | (U(ahead) << U(16))
    for v in range(len(start) - 1, 0, -1):
        start[v] = start[v - 1]
    start[0] = 0
    for k in range(total, len(positions)):
        positions[k] = 0
        reach[k] = 0
