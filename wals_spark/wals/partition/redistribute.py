"""Cells, wherever they were read, to the ranks that own their rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from wals_spark.cluster.process_group import Group, lockstep
from wals_spark.matrix.array_file import ArrayFile, read_ahead
from wals_spark.matrix.coo import Coo
from wals_spark.matrix.csr import Csr, build_csr
from wals_spark.matrix.placement import assign_rows
from wals_spark.wals.partition.memory_plan import Holding

Portions = Callable[[], Iterator[Coo]]


@dataclass(frozen=True)
class OwnRows:
    """The rows of one side that a rank owns, with all their cells.

    Attributes
    ----------
    owner : int32 array of shape (size,)
    rows : int64 array of shape (r,)
        Ids of the own rows, rising.
    parts : iterable of (int, Csr)
        Consecutive own rows: the place of the first of them, and the rows. At least one; may be read again.
    """

    owner: np.ndarray
    rows: np.ndarray
    parts: Iterable[tuple[int, Csr]]


def collect(group: Group, cells: Coo, size: int, k: int, duplicates: str) -> OwnRows:
    """Through memory: the own rows are one part."""
    counts = group.all_reduce(np.bincount(cells.rows, minlength=size).astype(np.int64))
    owner = assign_rows(counts, k, group.size)
    cells = _to_owners(group, owner, cells)
    rows, place = _own(group, owner)
    csr = build_csr(
        place[cells.rows], cells.cols, cells.values, len(rows), weights=cells.weights, duplicates=duplicates
    )
    return OwnRows(owner, rows, [(0, csr)])


def collect_filed(group: Group, portions: Portions, size: int, k: int, duplicates: str, holding: Holding) -> OwnRows:
    """Through files: no more than a portion and a part of the own rows are in memory at a time.

    The portions are read twice, to count and to send; arriving cells are set down by the part they belong to.

    Parameters
    ----------
    group : Group
    portions : callable
        This rank's portions of the matrix, from the first; at least one, which may be empty.
    size : int
    k : int
    duplicates : {"sum", "refuse", "keep"}
    holding : Holding
    """
    counts = np.zeros(size, np.int64)
    for cells in portions():
        counts += np.bincount(cells.rows, minlength=size)
    counts = group.all_reduce(counts)
    owner = assign_rows(counts, k, group.size)
    rows, place = _own(group, owner)
    starts = cut_rows(np.concatenate([[0], np.cumsum(counts[rows])]), holding.block_cells)
    arrived = ArrayFile(holding.scratch)
    records: list[list[int]] = [[] for _ in starts[1:]]
    nothing = Coo(*(column[:0] for column in next(portions()).columns))
    for sent in lockstep(group, portions(), nothing):
        cells = _to_owners(group, owner, sent)
        where = place[cells.rows]
        part = np.searchsorted(starts, where, side="right") - 1
        order = np.argsort(part, kind="stable")
        bounds = np.searchsorted(part[order], np.arange(len(starts)))
        columns = [column[order] for column in (where, *cells.columns[1:])]
        for number, (begin, end) in enumerate(pairwise(bounds)):
            if end > begin:
                records[number].append(arrived.append([column[begin:end] for column in columns]))
    parts = FiledParts(starts[:-1], ArrayFile(holding.scratch))
    for number, (first, last) in enumerate(pairwise(starts)):
        pieces = [arrived.read(record) for record in records[number]] or [nothing.columns]
        where, cols, values, *weights = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
        parts.append(
            build_csr(
                where - np.int32(first), cols, values, int(last - first),
                weights=weights[0] if weights else None, duplicates=duplicates,
            )
        )  # fmt: skip
    arrived.close()
    return OwnRows(owner, rows, parts)


class FiledParts:
    """The parts of `OwnRows` in a file, each read while the one before is used."""

    def __init__(self, starts: np.ndarray, file: ArrayFile) -> None:
        self._starts, self._file = starts, file

    def append(self, csr: Csr) -> None:
        """Add the rows that follow."""
        weights = [] if csr.weights is None else [csr.weights]
        self._file.append([csr.indptr, csr.indices, csr.values, *weights])

    def __iter__(self) -> Iterator[tuple[int, Csr]]:
        return read_ahead((int(first), Csr(*self._file.read(number))) for number, first in enumerate(self._starts))


def cut_rows(indptr: np.ndarray, cells: int) -> np.ndarray:
    """First rows of pieces of at most so many cells, or of one row; the last is the number of rows.

    Parameters
    ----------
    indptr : int64 array of shape (rows + 1,)
    cells : int
    """
    bounds = [0]
    rows = len(indptr) - 1
    while bounds[-1] < rows or len(bounds) == 1:
        stop = int(np.searchsorted(indptr, indptr[bounds[-1]] + cells, side="right")) - 1
        bounds.append(min(rows, max(stop, bounds[-1] + 1)))
    return np.array(bounds)


def _own(group: Group, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the own rows, and the place of every id among them, -1 for those of others."""
    rows = np.flatnonzero(owner == group.rank)
    place = np.full(len(owner), -1, np.int32)
    place[rows] = np.arange(len(rows), dtype=np.int32)
    return rows, place


def _to_owners(group: Group, owner: np.ndarray, cells: Coo) -> Coo:
    if group.size == 1:
        return cells
    destination = owner[cells.rows].astype(np.int16)
    order = np.argsort(destination, kind="stable")
    bounds = np.searchsorted(destination[order], np.arange(1, group.size))
    return Coo(*(np.concatenate(group.all_to_all(np.split(column[order], bounds))) for column in cells.columns))
