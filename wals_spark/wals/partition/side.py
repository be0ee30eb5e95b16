"""The two sides of the matrix as a rank knows them: who owns which row, and its own rows, ready to be solved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from wals_spark.matrix.array_file import ArrayFile, read_ahead
from wals_spark.wals.solvers.row_block import RowBlock

SIDES = ("row", "col")


@dataclass(frozen=True, eq=False)
class Needs:
    """The rows of the fixed side that a block of rows is solved from, where no rank holds them all.

    Attributes
    ----------
    ids : int64 array of shape (u,)
        Their ids, by owner and then rising; the block's `indices` count in these.
    asked : int64 array of shape (a,)
        Which own rows the ranks need for their blocks of the same number, rank after rank.
    counts : int64 array of shape (ranks,)
        How many of `asked` each rank needs.
    """

    ids: np.ndarray
    asked: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True, eq=False)
class SideBlock:
    """Some consecutive own rows, with what only the engine needs: where they stand, and what they are solved from.

    A solver takes `rows` alone. The place among the own rows and the halo are kept around it, because they say how
    ranks work together, and change with the number of ranks while the rows' systems do not.

    Attributes
    ----------
    rows : RowBlock
    start : int
        The place of the first row among the own rows.
    needs : Needs or None
        Where the block's `indices` are not ids of the other side.
    """

    rows: RowBlock
    start: int = 0
    needs: Needs | None = None

    @property
    def place(self) -> slice:
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
    offsets : float64 array of shape (size,)
        What the marginals give to the predictions of all rows, see `Objective.offsets`; zeros where nothing asks.
    blocks : iterable of SideBlock
        The own rows in pieces, in order; as many on every rank. It can be iterated again.
    """

    owner: np.ndarray
    ids: np.ndarray
    popularity: np.ndarray
    ridge: np.ndarray
    cell_counts: np.ndarray
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

    def __call__(self, start: int, cells: Sequence[np.ndarray], needs: Needs | None = None) -> SideBlock:
        """The block whose first row is own row `start`, given its indptr, indices, targets and weights."""
        indptr, indices, target, weight = cells
        ids = self.ids[start : start + len(indptr) - 1]
        return SideBlock(RowBlock(ids, indptr, indices, target, weight, self.popularity[ids]), start, needs)


class FiledBlocks:
    """Blocks of a side in a file, each read while the one before is solved.

    Parameters
    ----------
    build : BlockBuilder
    file : ArrayFile
        A record of (start, indptr, indices, targets, weights), or these and ids, asked and counts, for each block.
    """

    def __init__(self, build: BlockBuilder, file: ArrayFile) -> None:
        self.build, self.file = build, file

    def __len__(self) -> int:
        return len(self.file)

    def __iter__(self) -> Iterator[SideBlock]:
        return read_ahead(self._read(number) for number in range(len(self.file)))

    def _read(self, number: int) -> SideBlock:
        start, *arrays = self.file.read(number)
        return self.build(int(start[0]), arrays[:4], Needs(*arrays[4:]) if arrays[4:] else None)
