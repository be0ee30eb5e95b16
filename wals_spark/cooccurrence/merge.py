"""Sum packed rows of one block, within a bound of memory, without Spark.

Blobs are collected; when they exceed the bound they are summed and spilled to a local file as a sorted
run. At the end the runs are merged window by window, so that memory holds one part of every run.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from wals_spark.cooccurrence.kernels.column_set import empty_column_set
from wals_spark.cooccurrence.kernels.merging import merge_rows
from wals_spark.cooccurrence.kernels.packed_rows import (
    MAXIMUM_ENTRY,
    ROW_HEADER,
    empty_row_index,
    index_rows,
    pack_rows,
)
from wals_spark.cooccurrence.kernels.row_finishing import (
    OUTPUT_FULL,
    OVERFLOW,
    BlockSums,
    CellColumns,
    FinishingRules,
    empty_cell_columns,
)
from wals_spark.cooccurrence.semantics import Semantics
from wals_spark.errors import InputError, TransientError

INDEX_BYTES = 24
"""Memory per packed row: id, place, length, order."""
MAXIMUM_UNITS = 2**63 - 1
MAXIMUM_RUNS = 16
SMALLEST_BOUND = 1 << 18
SMALLEST_PART = 1 << 14
"""Bytes of a spilled part: memory holds one of every run."""
SMALLEST_OUTPUT = 1 << 12
LARGEST_OUTPUT = 1 << 20


@dataclass(frozen=True)
class SortedCells:
    """Sorted cells: int32 rows, int32 cols, int64 units, each of shape (cells,)."""

    rows: np.ndarray
    cols: np.ndarray
    units: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def copied(cls, columns: CellColumns, written: int) -> SortedCells:
        """A copy of the first cells of a kernel's output."""
        return cls(columns.rows[:written].copy(), columns.cols[:written].copy(), columns.units[:written].copy())


@dataclass
class BlockTotals:
    """Sums over a block.

    Attributes
    ----------
    row_units : int64 array of shape (V,)
        Row sums of what is kept; 0 for rows of other blocks.
    col_units : int64 array of shape (V,) or (0,)
        Column sums, where they differ from the row sums.
    cells, pruned_cells, pruned_units : int
    blobs, spilled_bytes : int
    """

    row_units: np.ndarray
    col_units: np.ndarray
    cells: int = 0
    pruned_cells: int = 0
    pruned_units: int = 0
    blobs: int = 0
    spilled_bytes: int = 0

    @classmethod
    def zeros(cls, semantics: Semantics, size: int) -> BlockTotals:
        """No counts of V = `size` tokens."""
        return cls(np.zeros(size, np.int64), np.zeros(0 if semantics.symmetric else size, np.int64))

    def add_pruned(self, pruned: np.ndarray) -> None:
        """Add the cells and units that a kernel dropped."""
        self.pruned_cells += int(pruned[0])
        self.pruned_units += int(pruned[1])


@dataclass
class _SpilledPart:
    """A stretch of a sorted run in the spill file: consecutive packed rows."""

    offset: int
    size: int
    rows: int


def finishing_rules(semantics: Semantics, limit: int, *, final: bool = True) -> FinishingRules:
    """What becomes of a row's sums; where they are not `final`, they stay as they are."""
    if not final:
        return FinishingRules(halve_diagonal=False, minimum=1, limit=limit)
    return FinishingRules(semantics.diagonal == "once", max(semantics.minimum_units, 1), limit)


def overflow_error(token: int, limit: int, semantics: Semantics) -> InputError:
    """The error for a sum of a token that exceeds the limit."""
    return InputError(
        f"counts overflow: a sum of token {token} exceeds {limit:,} units of 1/{semantics.unit:,}; set a lower "
        "cooccurrence.unit_bits or count smaller batches"
    )


class BlockMerger:
    """Sums the packed rows of one block.

    Parameters
    ----------
    semantics : Semantics
    size : int
        V.
    memory : int
        Bytes of packed rows to hold at most, the output included.
    limit : int
        The largest sum allowed; below 2^63 - 1 only in tests.
    directory : str, optional
        For spilled runs; None = the system's temporary directory.
    """

    def __init__(
        self,
        semantics: Semantics,
        size: int,
        memory: int,
        *,
        limit: int = MAXIMUM_UNITS,
        directory: str | None = None,
    ) -> None:
        self.semantics, self.size, self.limit = semantics, size, limit
        # What is held is joined into one buffer to be summed, so it counts twice.
        self._bound = max(SMALLEST_BOUND, memory // 3)
        # Writing compressed Parquet holds about as much again as the cells handed to it.
        self._output = int(max(size + 1, min(LARGEST_OUTPUT, max(SMALLEST_OUTPUT, memory // 256))))
        self._directory = directory
        self._wide = np.zeros(size + 1, np.int64)
        self._columns = empty_column_set(size)
        self.totals = BlockTotals.zeros(semantics, size)

    def merge(self, blobs: Iterable[tuple[int, bytes]]) -> Iterator[SortedCells]:
        """Sorted cells of all blobs, each given with its number of rows.

        Raises
        ------
        InputError
            A sum exceeds what an int64 holds.
        TransientError
            The spill file cannot be written.
        """
        held: list[bytes] = []
        size = rows = 0
        with _SpillFile(self._directory) as spill:
            runs: list[list[_SpilledPart]] = []
            for count, blob in blobs:
                self.totals.blobs += 1
                weight = len(blob) + INDEX_BYTES * count
                if held and size + weight > self._bound:
                    runs.append(self._spill(self._sum(held, rows, final=False), spill))
                    held, size, rows = [], 0, 0
                    if len(runs) >= MAXIMUM_RUNS:
                        runs = [self._spill(self._merge_runs(runs, spill, final=False), spill)]
                held.append(blob)
                size += weight
                rows += count
            if not runs:
                yield from self._counted(self._sum(held, rows, final=True))
                return
            if held:
                runs.append(self._spill(self._sum(held, rows, final=False), spill))
                held = []
            yield from self._counted(self._merge_runs(runs, spill, final=True))

    def _counted(self, cells: Iterator[SortedCells]) -> Iterator[SortedCells]:
        for part in cells:
            self.totals.cells += len(part)
            yield part

    def _sum(
        self, blobs: list[bytes], rows: int, *, final: bool, low: int = 0, high: int = 2**32 - 1
    ) -> Iterator[SortedCells]:
        """Sum the rows low .. high of all blobs."""
        buffer = np.frombuffer(b"".join(blobs), np.uint8)
        packed = empty_row_index(rows)
        at = filled = 0
        for blob in blobs:
            filled = index_rows(buffer, at, at + len(blob), packed, filled)
            at += len(blob)
        assert filled == rows, f"{filled} packed rows, {rows} announced"
        order = np.argsort(packed.rows, kind="stable")
        first, last = np.searchsorted(packed.rows[order], [low, high + 1])
        order = order[first:last]
        # Sums of a spilled run are not final: no halving, no pruning, no totals.
        rules = finishing_rules(self.semantics, self.limit, final=final)
        sums = BlockSums(
            self.totals.row_units if final else np.zeros(self.size, np.int64),
            self.totals.col_units if final else np.zeros(0, np.int64),
            np.zeros(2, np.int64),
        )
        cells = empty_cell_columns(self._output)
        index, state = 0, OUTPUT_FULL
        while state == OUTPUT_FULL:
            index, written, state = merge_rows(
                order, index, packed, buffer, rules, self._wide, self._columns, cells, sums
            )
            if state == OVERFLOW:
                raise overflow_error(int(packed.rows[order[index]]), self.limit, self.semantics)
            if written:
                yield SortedCells.copied(cells, written)
        if final:
            self.totals.add_pruned(sums.pruned)

    def _spill(self, cells: Iterator[SortedCells], spill: _SpillFile) -> list[_SpilledPart]:
        run: list[_SpilledPart] = []
        limit = max(SMALLEST_PART, self._bound // (2 * MAXIMUM_RUNS))
        for part in cells:
            for rows, payload in pack_cells(part, limit):
                run.append(_SpilledPart(spill.write(payload), len(payload), rows))
                self.totals.spilled_bytes += len(payload)
        return run

    def _merge_runs(self, runs: list[list[_SpilledPart]], spill: _SpillFile, *, final: bool) -> Iterator[SortedCells]:
        """Merge sorted runs, holding one part of each: all rows below the lowest end are complete."""
        upcoming = [iter(run) for run in runs]
        current: dict[int, tuple[np.ndarray, bytes]] = {}
        active = set(range(len(runs)))
        low = 0
        while active:
            for number in sorted(active):
                if number not in current:
                    part = next(upcoming[number], None)
                    if part is None:
                        active.discard(number)
                        continue
                    payload = spill.read(part.offset, part.size)
                    current[number] = (_row_ids(payload, part.rows), payload)
            if not current:
                return
            high = min(int(ids[-1]) for ids, _ in current.values())
            blobs = [payload for _, payload in current.values()]
            rows = sum(len(ids) for ids, _ in current.values())
            yield from self._sum(blobs, rows, final=final, low=low, high=high)
            low = high + 1
            current = {number: held for number, held in current.items() if int(held[0][-1]) > high}


def pack_cells(cells: SortedCells, limit: int) -> Iterator[tuple[int, bytes]]:
    """Sorted cells as (rows, packed rows), in pieces of about `limit` bytes and whole rows."""
    index = 0
    buffer = np.empty(limit, np.uint8)
    while index < len(cells):
        index, used, packed = pack_rows(cells.rows, cells.cols, cells.units, index, buffer)
        if packed:
            yield int(packed), buffer[:used].tobytes()
        else:
            stop = int(np.searchsorted(cells.rows, cells.rows[index], side="right"))
            buffer = np.empty((stop - index) * MAXIMUM_ENTRY + ROW_HEADER, np.uint8)


def _row_ids(payload: bytes, rows: int) -> np.ndarray:
    packed = empty_row_index(rows)
    index_rows(np.frombuffer(payload, np.uint8), 0, len(payload), packed, 0)
    return packed.rows


class _SpillFile:
    """A temporary file of this task, made when first written."""

    def __init__(self, directory: str | None) -> None:
        self._directory = directory
        self._descriptor: int | None = None
        self._size = 0

    def write(self, data: bytes) -> int:
        try:
            if self._descriptor is None:
                self._descriptor, path = tempfile.mkstemp(prefix="wals-spark-spill-", dir=self._directory)
                os.unlink(path)
            offset, view = self._size, memoryview(data)
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError as error:
            where = self._directory or tempfile.gettempdir()
            raise TransientError(
                f"cannot spill counts to {where}: {error}; free space there, set TMPDIR to a larger disk, or raise "
                "cooccurrence.memory_per_task"
            ) from error
        self._size += len(data)
        return offset

    def read(self, offset: int, size: int) -> bytes:
        assert self._descriptor is not None
        data = os.pread(self._descriptor, size, offset)
        assert len(data) == size, f"spill file cut short: {len(data)} of {size} bytes"
        return data

    def __enter__(self) -> _SpillFile:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
