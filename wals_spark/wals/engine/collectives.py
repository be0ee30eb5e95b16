"""What the ranks tell each other in a half-step: sums over all rows, solved rows, losses.

Sums go over `PIECES` parts of the rows in a fixed order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from wals_spark.cluster import process_group as messages
from wals_spark.cluster.process_group import Group

PIECES = 16


def pieces(size: int, ranks: int = 1) -> list[slice]:
    """Ranges that cover 0 .. size - 1: `PIECES` of them, or a rank's part of so many."""
    bounds = np.linspace(0, size, -(-PIECES // ranks) + 1).astype(np.int64)
    return [slice(int(start), int(stop)) for start, stop in pairwise(bounds)]


def over_pieces(
    group: Group,
    own: Sequence[slice],
    shape: tuple[int, ...],
    part: Callable[[slice], np.ndarray],
    threads: int = 1,
) -> list[np.ndarray]:
    """``part(piece)`` of the pieces of all ranks, dealt in turn: first the first of each rank.

    With the pieces of one list dealt to the ranks (``own = pieces(n)[rank::size]``) the list does not depend on the
    number of ranks.

    Parameters
    ----------
    group : Group
    own : sequence of slice
        At most ``ceil(PIECES / ranks)``.
    shape : tuple
        Of what `part` returns, as float64.
    part : callable
    threads : int
    """
    turns = -(-PIECES // group.size)
    mine = np.zeros((turns, *shape))
    with ThreadPoolExecutor(threads) as pool:
        for turn, value in enumerate(pool.map(part, own)):
            mine[turn] = value
    gathered = group.gather(mine)
    return [gathered[rank][turn] for turn in range(turns) for rank in range(group.size)]


def publish(group: Group, owner: np.ndarray, rows: np.ndarray, solved: np.ndarray, full: np.ndarray) -> None:
    """Write the rows that every rank has solved into `full` on every rank, a bounded message at a time.

    Parameters
    ----------
    owner : int32 array of shape (size,)
    rows : int64 array of shape (r,), the own rows
    solved : array of shape (r, ...)
    full : array of shape (size, ...), written
    """
    if group.size == 1:
        full[rows] = solved
        return
    ids = np.argsort(owner, kind="stable")
    begin = np.searchsorted(owner[ids], np.arange(group.size + 1))
    row_bytes = solved.itemsize * int(np.prod(solved.shape[1:], dtype=np.int64))
    most = int(np.diff(begin).max())
    at_once = max(1, messages.LARGEST_MESSAGE // row_bytes)
    for start in range(0, most, at_once):
        part = solved[start : start + at_once]
        padded = np.zeros((min(at_once, most - start), *solved.shape[1:]), solved.dtype)
        padded[: len(part)] = part
        for rank, received in enumerate(group.gather(padded)):
            where = ids[begin[rank] : begin[rank + 1]][start : start + at_once]
            full[where] = received[: len(where)]
