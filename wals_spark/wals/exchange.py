"""What the ranks tell each other in a half-step: solved rows, Gramians, losses.

Sums go over `PIECES` ranges of ids in a fixed order, so that their bits do not depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from wals_spark.cluster.group import Group

PIECES = 16


def pieces(size: int) -> list[slice]:
    """`PIECES` ranges of ids that cover 0 .. size - 1; the same for any number of ranks."""
    bounds = np.linspace(0, size, PIECES + 1).astype(int)
    return [slice(int(start), int(stop)) for start, stop in pairwise(bounds)]


def over_pieces(
    group: Group, size: int, shape: tuple[int, ...], part: Callable[[slice], np.ndarray], threads: int = 1
) -> list[np.ndarray]:
    """``[part(piece) for piece in pieces(size)]`` with the pieces dealt to the ranks.

    Parameters
    ----------
    group : Group
    size : int
    shape : tuple
        Of what `part` returns, as float64.
    part : callable
    threads : int
    """
    turns = -(-PIECES // group.size)
    mine = np.zeros((turns, *shape))
    own = pieces(size)[group.rank :: group.size]
    with ThreadPoolExecutor(threads) as pool:
        for turn, value in enumerate(pool.map(part, own)):
            mine[turn] = value
    gathered = group.gather(mine)
    return [gathered[number % group.size][number // group.size] for number in range(PIECES)]


def gramian(group: Group, z: np.ndarray, h: np.ndarray, threads: int = 1) -> np.ndarray:
    """``G = sum_j h_j z_j z_j^T`` in float64.

    Parameters
    ----------
    z : array of shape (n, K), the same on every rank
    h : float64 array of shape (n,)

    Returns
    -------
    float64 array of shape (K, K)
    """

    def part(piece: slice) -> np.ndarray:
        wide = z[piece].astype(np.float64)
        return (wide.T * h[piece]) @ wide

    return np.sum(over_pieces(group, len(z), (z.shape[1], z.shape[1]), part, threads), axis=0)


def publish(group: Group, owner: np.ndarray, rows: np.ndarray, solved: np.ndarray, full: np.ndarray) -> None:
    """Write the rows that every rank has solved into `full` on every rank.

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
    most = int(np.bincount(owner, minlength=group.size).max())
    padded = np.zeros((most, *solved.shape[1:]), solved.dtype)
    padded[: len(rows)] = solved
    for rank, part in enumerate(group.gather(padded)):
        ids = np.flatnonzero(owner == rank)
        full[ids] = part[: len(ids)]
