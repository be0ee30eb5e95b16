"""Redistribution: cells, wherever they were read, go to the ranks that own their rows, by `Group.all_to_all`."""

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
from wals_spark.wals.partition.blocking import cut_by_cells
from wals_spark.wals.partition.memory_plan import MemoryPlan

CooBatches = Callable[[], Iterator[Coo]]
"""Starts reading a rank's cells, at least one batch, which may be empty."""


@dataclass(frozen=True)
class OwnRows:
    """The rows of one side that a rank owns, with all their cells.

    Attributes
    ----------
    owner : int32 array of shape (size,)
    rows : int64 array of shape (r,)
        Ids of the own rows, rising.
    parts : iterable of (int, Csr)
        Consecutive own rows: the position of the first of them, and the rows. At least one; may be read again.
    """

    owner: np.ndarray
    rows: np.ndarray
    parts: Iterable[tuple[int, Csr]]


def redistribute(group: Group, cells: Coo, size: int, k: int, duplicates: str) -> OwnRows:
    """Send every cell to the owner of its row, through memory: the own rows are one part.

    Parameters
    ----------
    group : Group
    cells : Coo
        That this rank has read.
    size : int
        Rows of the matrix.
    k : int
        Decides the balance between long and short rows, see `wals_spark.matrix.placement.assign_rows`.
    duplicates : {"sum", "refuse", "keep"}

    Returns
    -------
    OwnRows
    """
    counts = group.all_reduce(np.bincount(cells.rows, minlength=size).astype(np.int64))
    owner = assign_rows(counts, k, group.size)
    cells = _to_owners(group, owner, cells)
    rows, position = _own_rows(group, owner)
    csr = build_csr(
        position[cells.rows], cells.cols, cells.values, len(rows), weights=cells.weights, duplicates=duplicates
    )
    return OwnRows(owner, rows, [(0, csr)])


def redistribute_streamed(
    group: Group, batches: CooBatches, size: int, k: int, duplicates: str, plan: MemoryPlan
) -> OwnRows:
    """Send every cell to the owner of its row, through files: a batch and a part of the own rows are in memory at most.

    The batches are read twice, to count and to send; arriving cells are stored by the part that they belong to.

    Parameters
    ----------
    group : Group
    batches : callable
        Reads this rank's cells, see `CooBatches`.
    size : int
        Rows of the matrix.
    k : int
        Decides the balance between long and short rows, see `wals_spark.matrix.placement.assign_rows`.
    duplicates : {"sum", "refuse", "keep"}
    plan : MemoryPlan

    Returns
    -------
    OwnRows
    """
    counts = np.zeros(size, np.int64)
    for cells in batches():
        counts += np.bincount(cells.rows, minlength=size)
    counts = group.all_reduce(counts)
    owner = assign_rows(counts, k, group.size)
    rows, position = _own_rows(group, owner)
    starts = cut_by_cells(np.concatenate([[0], np.cumsum(counts[rows])]), plan.block_cells)
    arrived = ArrayFile(plan.scratch)
    records: list[list[int]] = [[] for _ in starts[1:]]
    nothing = Coo(*(column[:0] for column in next(batches()).columns))
    for sent in lockstep(group, batches(), nothing):
        cells = _to_owners(group, owner, sent)
        where = position[cells.rows]
        part = np.searchsorted(starts, where, side="right") - 1
        order = np.argsort(part, kind="stable")
        bounds = np.searchsorted(part[order], np.arange(len(starts)))
        columns = [column[order] for column in (where, *cells.columns[1:])]
        for number, (begin, end) in enumerate(pairwise(bounds)):
            if end > begin:
                records[number].append(arrived.append([column[begin:end] for column in columns]))
    parts = StoredRows(starts[:-1], ArrayFile(plan.scratch))
    for number, (first, last) in enumerate(pairwise(starts)):
        chunks = [arrived.read(record) for record in records[number]] or [nothing.columns]
        where, cols, values, *weights = (np.concatenate(arrays) for arrays in zip(*chunks, strict=True))
        parts.append(
            build_csr(
                where - np.int32(first), cols, values, int(last - first),
                weights=weights[0] if weights else None, duplicates=duplicates,
            )
        )  # fmt: skip
    arrived.close()
    return OwnRows(owner, rows, parts)


class StoredRows:
    """The parts of `OwnRows` in a file, each read while the one before is used."""

    def __init__(self, starts: np.ndarray, file: ArrayFile) -> None:
        self._starts, self._file = starts, file

    def append(self, csr: Csr) -> None:
        """Add the rows that follow."""
        weights = [] if csr.weights is None else [csr.weights]
        self._file.append([csr.indptr, csr.indices, csr.values, *weights])

    def __iter__(self) -> Iterator[tuple[int, Csr]]:
        return read_ahead((int(first), Csr(*self._file.read(number))) for number, first in enumerate(self._starts))


def _own_rows(group: Group, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the own rows, and the position of every id among them, -1 for those of others."""
    rows = np.flatnonzero(owner == group.rank)
    position = np.full(len(owner), -1, np.int32)
    position[rows] = np.arange(len(rows), dtype=np.int32)
    return rows, position


def _to_owners(group: Group, owner: np.ndarray, cells: Coo) -> Coo:
    if group.size == 1:
        return cells
    destination = owner[cells.rows].astype(np.int16)
    order = np.argsort(destination, kind="stable")
    bounds = np.searchsorted(destination[order], np.arange(1, group.size))
    return Coo(*(np.concatenate(group.all_to_all(np.split(column[order], bounds))) for column in cells.columns))
