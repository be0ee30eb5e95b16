"""Collectives of a half-step: chunked sums over all rows, and solved rows and losses of all ranks.

Sums go over `SUM_CHUNKS` chunks of the rows in a fixed order, so that they do not depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from wals_spark.cluster import process_group
from wals_spark.cluster.process_group import Group

SUM_CHUNKS = 16


def sum_ranges(size: int, ranks: int = 1) -> list[slice]:
    """Ranges that cover 0 .. size - 1: ``ceil(SUM_CHUNKS / ranks)`` of them, what one of `ranks` ranks adds up."""
    bounds = np.linspace(0, size, -(-SUM_CHUNKS // ranks) + 1).astype(np.int64)
    return [slice(int(start), int(stop)) for start, stop in pairwise(bounds)]


def all_gather_chunks(
    group: Group,
    own: Sequence[slice],
    shape: tuple[int, ...],
    function: Callable[[slice], np.ndarray],
    threads: int = 1,
) -> list[np.ndarray]:
    """``function(chunk)`` of the chunks of all ranks, in turn: first the first chunk of each rank, then the second.

    With the chunks of one list dealt to the ranks (``own = sum_ranges(n)[rank::size]``) the list does not depend on
    the number of ranks.

    Parameters
    ----------
    group : Group
    own : sequence of slice
        At most ``ceil(SUM_CHUNKS / ranks)``.
    shape : tuple of int
        Of what `function` returns, as float64.
    function : callable
    threads : int

    Returns
    -------
    list of float64 array
        ``ceil(SUM_CHUNKS / ranks)`` per rank, zeros for chunks that a rank does not have.
    """
    turns = -(-SUM_CHUNKS // group.size)
    mine = np.zeros((turns, *shape))
    with ThreadPoolExecutor(threads) as pool:
        for turn, value in enumerate(pool.map(function, own)):
            mine[turn] = value
    gathered = group.all_gather(mine)
    return [gathered[rank][turn] for turn in range(turns) for rank in range(group.size)]


def all_gather_rows(group: Group, owner: np.ndarray, rows: np.ndarray, own: np.ndarray, full: np.ndarray) -> None:
    """Write the own rows of every rank into `full` on every rank, a bounded message at a time.

    Parameters
    ----------
    group : Group
    owner : int32 array of shape (size,)
        The rank that owns each row.
    rows : int64 array of shape (r,)
        Ids of the own rows, rising.
    own : array of shape (r, ...)
        What this rank has of them.
    full : array of shape (size, ...)
        Written.

    Returns
    -------
    None
    """
    if group.size == 1:
        full[rows] = own
        return
    ids = np.argsort(owner, kind="stable")
    begin = np.searchsorted(owner[ids], np.arange(group.size + 1))
    row_bytes = own.itemsize * int(np.prod(own.shape[1:], dtype=np.int64))
    most = int(np.diff(begin).max())
    at_once = max(1, process_group.MAX_MESSAGE_BYTES // row_bytes)
    for start in range(0, most, at_once):
        part = own[start : start + at_once]
        padded = np.zeros((min(at_once, most - start), *own.shape[1:]), own.dtype)
        padded[: len(part)] = part
        for rank, received in enumerate(group.all_gather(padded)):
            where = ids[begin[rank] : begin[rank + 1]][start : start + at_once]
            full[where] = received[: len(where)]
