"""The halo of a block of rows where factors are sharded: ghost rows of the fixed side, and who sends them.

Found once, before training; each half-step then fetches the ghost rows of a block by one `Group.all_to_all`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from wals_spark.cluster.process_group import Group, lockstep
from wals_spark.wals.partition.blocking import BlockCells


@dataclass(frozen=True, eq=False)
class Halo:
    """What a rank receives and sends for the blocks of one number, one block on each rank.

    Attributes
    ----------
    ghost_ids : int64 array of shape (u,)
        Ids of the rows of the fixed side that this rank's block is solved from, by owner and then rising: the order
        in which they arrive. The block's `indices` count in these.
    send_rows : int64 array of shape (s,)
        Positions of the own rows of the fixed side that the blocks of all ranks are solved from, rank after rank.
    send_counts : int64 array of shape (ranks,)
        The number of `send_rows` that go to each rank.
    """

    ghost_ids: np.ndarray
    send_rows: np.ndarray
    send_counts: np.ndarray

    def split(self, x: np.ndarray) -> list[np.ndarray]:
        """The own rows `x` of the fixed side as parts, one for each rank to receive."""
        return [x[rows] for rows in np.split(self.send_rows, np.cumsum(self.send_counts)[:-1])]


def build_halos(
    group: Group, blocks: Iterator[BlockCells], owner: np.ndarray, dtype: np.dtype
) -> Iterator[tuple[BlockCells, Halo]]:
    """Number the columns of every block by its ghost rows, and let their owners know.

    Every rank yields the same number of blocks: those that have fewer get empty ones.

    Parameters
    ----------
    group : Group
    blocks : iterator of BlockCells
    owner : int32 array of shape (size,)
        Of the columns.
    dtype : numpy.dtype
        Of targets and weights.

    Yields
    ------
    block : BlockCells
        Its `indices` are positions among the halo's `ghost_ids`.
    halo : Halo
    """
    own = np.flatnonzero(owner == group.rank)
    for block in lockstep(group, blocks, BlockCells.empty(dtype)):
        named = np.zeros(len(owner), bool)
        named[block.indices] = True
        ids = np.flatnonzero(named)
        ids = ids[np.argsort(owner[ids], kind="stable")]
        position = np.zeros(len(owner), np.int32)
        position[ids] = np.arange(len(ids), dtype=np.int32)
        bounds = np.searchsorted(owner[ids], np.arange(1, group.size))
        requested = group.all_to_all(np.split(ids, bounds))
        counts = np.array([len(part) for part in requested], np.int64)
        halo = Halo(ids, np.searchsorted(own, np.concatenate(requested)), counts)
        yield block._replace(indices=position[block.indices]), halo
