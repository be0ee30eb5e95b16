"""The two sides of the matrix as a rank holds them: its own rows and its own columns, ready to be solved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from wals_spark.matrix.array_file import ArrayFile, read_ahead

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
class Side:
    """The part of one side that a rank solves. "Rows" are the columns of the matrix on the side "col".

    A rank solves its rows block by block, and a block is a `Side` too: of some consecutive own rows, with their
    cells. Where all own rows are one block (see `blocks`), it is the `Side` itself; otherwise the whole has no cells.
    Two are equal only if they are one object, which may be cached by.

    Attributes
    ----------
    owner : int32 array of shape (size,)
        The rank that solves each row.
    rows : int64 array of shape (r,)
        Ids of the own rows, rising.
    indptr, indices : int64 (r + 1,) and int32 (nnz,) arrays
        Observed cells of the own rows.
    m, d : arrays of shape (nnz,)
        Targets and extra weights, see `wals_spark.objective`.
    g : float64 array of shape (r,)
        Popularity of the own rows.
    weights : float64 array of shape (size,)
        Popularity of all rows of this side: what the other side sees as h.
    ridge : float64 array of shape (size,)
        lambda_i of all rows.
    cells : int64 array of shape (size,)
        Observed cells of all rows.
    offsets : float64 array of shape (size,)
        What the marginals give to the predictions of all rows, see `Objective.offsets`; empty where nothing asks.
    start : int
        Of a block: its first row's place among the own rows.
    needs : Needs or None
        Of a block, where `indices` are not ids of the other side.
    stored : iterable of Side, or None
        The blocks where they are not the whole.
    """

    owner: np.ndarray
    rows: np.ndarray
    indptr: np.ndarray
    indices: np.ndarray
    m: np.ndarray
    d: np.ndarray
    g: np.ndarray
    weights: np.ndarray
    ridge: np.ndarray
    cells: np.ndarray
    offsets: np.ndarray = field(default_factory=lambda: np.zeros(0))
    start: int = 0
    needs: Needs | None = None
    stored: Iterable[Side] | None = None

    @property
    def size(self) -> int:
        """Rows of all ranks."""
        return len(self.owner)

    @property
    def place(self) -> slice:
        """Of a block: its rows among the own rows."""
        return slice(self.start, self.start + len(self.rows))

    def blocks(self) -> Iterator[Side]:
        """The own rows with their cells, in pieces, in order; as many on every rank."""
        if self.stored is None:
            yield self
        else:
            yield from self.stored

    def block(self, start: int, cells: Sequence[np.ndarray], needs: Needs | None = None) -> Side:
        """Some own rows, given their indptr, indices, m and d."""
        indptr, indices, m, d = cells
        part = slice(start, start + len(indptr) - 1)
        return replace(
            self,
            rows=self.rows[part],
            g=self.g[part],
            indptr=indptr,
            indices=indices,
            m=m,
            d=d,
            start=start,
            needs=needs,
            stored=None,
        )


class FiledBlocks:
    """Blocks of a side in a file, each read while the one before is solved.

    Parameters
    ----------
    side : Side
        The whole, without cells.
    file : ArrayFile
        A record of (start, indptr, indices, m, d), or these and ids, asked and counts, for each block.
    """

    def __init__(self, side: Side, file: ArrayFile) -> None:
        self.side, self.file = side, file

    def __len__(self) -> int:
        return len(self.file)

    def __iter__(self) -> Iterator[Side]:
        return read_ahead(self._read(number) for number in range(len(self.file)))

    def _read(self, number: int) -> Side:
        start, *arrays = self.file.read(number)
        return self.side.block(int(start[0]), arrays[:4], Needs(*arrays[4:]) if arrays[4:] else None)
