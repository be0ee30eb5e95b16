"""Which rows of the other side a block of rows is solved from, and who sends them; found out once, before training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from wals_spark.cluster.process_group import Group, lockstep
from wals_spark.wals.partition.side import Needs

Piece = tuple[int, Sequence[np.ndarray]]
"""First own row; indptr, indices, m and d."""


def cut_by_distinct(piece: Piece, size: int, most: int) -> Iterator[Piece]:
    """Cut a piece so that each part names at most `most` columns of `size`, or is one row."""
    from wals_spark.matrix.kernels import distinct_bounds

    first, (indptr, indices, m, d) = piece
    bounds = distinct_bounds(indptr, indices, np.full(size, -1, np.int32), most)
    for start, stop in pairwise(bounds.tolist()):
        cells = slice(int(indptr[start]), int(indptr[stop]))
        yield first + start, (indptr[start : stop + 1] - indptr[start], indices[cells], m[cells], d[cells])


def with_needs(
    group: Group, pieces: Iterator[Piece], owner: np.ndarray, dtype: np.dtype
) -> Iterator[tuple[Piece, Needs]]:
    """Number the columns of every piece anew, and tell their owners.

    As many pieces on every rank: those that have fewer get empty ones.

    Parameters
    ----------
    group : Group
    pieces : iterator of Piece
    owner : int32 array of shape (size,)
        Of the columns.
    dtype : dtype
        Of m and d.
    """
    own = np.flatnonzero(owner == group.rank)
    nothing = np.zeros(0, dtype)
    idle: Piece = (0, (np.zeros(1, np.int64), np.zeros(0, np.int32), nothing, nothing))
    for first, (indptr, indices, m, d) in lockstep(group, pieces, idle):
        named = np.zeros(len(owner), bool)
        named[indices] = True
        ids = np.flatnonzero(named)
        ids = ids[np.argsort(owner[ids], kind="stable")]
        place = np.zeros(len(owner), np.int32)
        place[ids] = np.arange(len(ids), dtype=np.int32)
        bounds = np.searchsorted(owner[ids], np.arange(1, group.size))
        asked = group.all_to_all(np.split(ids, bounds))
        counts = np.array([len(part) for part in asked], np.int64)
        needs = Needs(ids, np.searchsorted(own, np.concatenate(asked)), counts)
        yield (first, (indptr, place[indices], m, d)), needs
