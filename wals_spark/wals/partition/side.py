"""The two sides of the matrix as a rank knows them: who owns which row, and its own rows, ready to be solved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from wals_spark.matrix.array_file import ArrayFile, read_ahead
from wals_spark.wals.partition.blocking import BlockCells
from wals_spark.wals.partition.halo import Halo
from wals_spark.wals.solvers.row_block import RowBlock

SIDES = ("row", "col")


@dataclass(frozen=True, eq=False)
class SideBlock:
    """Some consecutive own rows, with what the engine alone uses: their position, and the rows they are solved from.

    A solver takes `rows` alone. The position among the own rows and the halo are kept around it, because they say how
    ranks work together, and change with the number of ranks while the rows' systems do not.

    Attributes
    ----------
    rows : RowBlock
    start : int
        Position of the first row among the own rows.
    halo : Halo or None
        Where the block's `indices` are not ids of the other side.
    """

    rows: RowBlock
    start: int = 0
    halo: Halo | None = None

    @property
    def positions(self) -> slice:
        """The block's rows among the own rows."""
        return slice(self.start, self.start + len(self.rows))


@dataclass(frozen=True, eq=False)
class Side:
    """One side of the matrix as a rank knows it; the "rows" of the side "col" are the columns of the matrix.

    Attributes
    ----------
    owner : int32 array of shape (size,)
        The rank that solves each row.
    ids : int64 array of shape (r,)
        Ids of the own rows, rising.
    popularity : float64 array of shape (size,)
        g_i of all rows: what the other side sees as h.
    ridge : float64 array of shape (size,)
        lambda_i of all rows.
    cell_counts : int64 array of shape (size,)
        Observed cells of all rows.
    sums : float64 array of shape (size,)
        r_i of all rows, see `wals_spark.objective.Marginals`.
    offsets : float64 array of shape (size,)
        What the marginals give to the predictions of all rows, see `Objective.offsets`; zeros where nothing asks.
    blocks : iterable of SideBlock
        The own rows in pieces, in order; the same number of blocks on every rank. It can be iterated again.
    """

    owner: np.ndarray
    ids: np.ndarray
    popularity: np.ndarray
    ridge: np.ndarray
    cell_counts: np.ndarray
    sums: np.ndarray
    offsets: np.ndarray
    blocks: Iterable[SideBlock]

    @property
    def size(self) -> int:
        """Rows of all ranks."""
        return len(self.owner)


class BlockBuilder:
    """Makes the blocks of a side from the cells of consecutive own rows.

    Parameters
    ----------
    ids : int64 array of shape (r,)
        Of the own rows.
    popularity : float64 array of shape (size,)
        Of all rows.
    """

    def __init__(self, ids: np.ndarray, popularity: np.ndarray) -> None:
        self.ids, self.popularity = ids, popularity

    def __call__(self, cells: BlockCells, halo: Halo | None = None) -> SideBlock:
        """The block of these cells."""
        start, indptr, indices, target, weight = cells
        ids = self.ids[start : start + len(indptr) - 1]
        return SideBlock(RowBlock(ids, indptr, indices, target, weight, self.popularity[ids]), start, halo)


class StoredBlocks:
    """Blocks of a side in a file, each read while the one before is solved.

    Parameters
    ----------
    build : BlockBuilder
    file : ArrayFile
        A record of the fields of `BlockCells`, or these and those of `Halo`, for each block: see `append`.
    """

    def __init__(self, build: BlockBuilder, file: ArrayFile) -> None:
        self.build, self.file = build, file

    def append(self, cells: BlockCells, halo: Halo | None = None) -> None:
        """Store the block that follows."""
        more = [] if halo is None else [halo.ghost_ids, halo.send_rows, halo.send_counts]
        self.file.append([np.array([cells.start]), *cells[1:], *more])

    def __len__(self) -> int:
        return len(self.file)

    def __iter__(self) -> Iterator[SideBlock]:
        return read_ahead(self._read(number) for number in range(len(self.file)))

    def _read(self, number: int) -> SideBlock:
        start, *arrays = self.file.read(number)
        return self.build(BlockCells(int(start[0]), *arrays[:4]), Halo(*arrays[4:]) if arrays[4:] else None)
