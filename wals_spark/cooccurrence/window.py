"""Count the co-occurrences of token arrays, without Spark.

X(i, j) = sum over positions p of token i, over d = 1 .. W_left with token j at p - d, of w_left(d)
        + the same over d = 1 .. W_right with token j at p + d, of w_right(d)

in units of 1 / unit. The result comes as *packed rows*, see `PackedRows`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from wals_spark.cooccurrence.kernels.occurrences import (
    PREFETCH_DISTANCE,
    Occurrences,
    TokenSegments,
    list_positions,
    start_positions,
)
from wals_spark.cooccurrence.kernels.packed_rows import MAXIMUM_ENTRY, ROW_HEADER
from wals_spark.cooccurrence.kernels.row_accumulation import (
    WindowWeights,
    count_cells,
    count_packed_rows,
    empty_accumulators,
)
from wals_spark.cooccurrence.kernels.row_finishing import OUTPUT_FULL, OVERFLOW, BlockSums, empty_cell_columns
from wals_spark.cooccurrence.kernels.token_cleaning import (
    BREAK,
    HOLD,
    REMOVE,
    CleaningRules,
    DocumentTokens,
    clean_tokens,
)
from wals_spark.cooccurrence.merge import (
    LARGEST_OUTPUT,
    MAXIMUM_UNITS,
    BlockTotals,
    SortedCells,
    finishing_rules,
    overflow_error,
)
from wals_spark.cooccurrence.semantics import Semantics, keep_thresholds
from wals_spark.errors import InputError
from wals_spark.token_shards import TokenChunk

TOKEN_BYTES = 12
"""Memory per token of a chunk being counted: id, position, reach."""
VOCABULARY_BYTES = 40
"""Memory per token of the vocabulary: accumulators, list starts, rows, thresholds."""
SMALLEST_CHUNK = 1 << 16
SMALLEST_BLOB = 1 << 14


@dataclass(frozen=True)
class PackedRows:
    """Rows of one block, ascending, without repeats.

    A row is: difference of its id to the row before, number of bytes of what follows (4 bytes, low first),
    then for every cell the difference of the column to the one before and the units. Differences and
    units are unsigned, 7 bits per byte, low bits first, the high bit set on all bytes but the last.

    Attributes
    ----------
    block : int
    rows, cells : int
    payload : bytes
    """

    block: int
    rows: int
    cells: int
    payload: bytes


@dataclass
class TaskTotals:
    """What a task has read, and the non-zeros and bytes that it has made of it."""

    documents: int = 0
    tokens: int = 0
    kept: int = 0
    subsampled: int = 0
    chunks: int = 0
    cells: int = 0
    packed_bytes: int = 0


class WindowCounter:
    """Counts chunks of tokens into packed rows, within a bound of memory.

    `totals` says what was read, `counted_tokens` how many of those tokens are counted so far.

    Parameters
    ----------
    semantics : Semantics
    size : int
        V: ids are 0 .. V-1.
    block_of : int array of shape (V,)
        Block of every row.
    memory : int
        Bytes to hold at most; more memory means fewer, larger pieces, never another result.
    counts : int64 array of shape (V,), optional
        Occurrences in the whole batch; needed for subsampling.
    only : set of int, optional
        Blocks to count; None = all.

    Raises
    ------
    InputError
        `memory` is too small for the vocabulary.
    """

    def __init__(
        self,
        semantics: Semantics,
        size: int,
        block_of: np.ndarray,
        memory: int,
        counts: np.ndarray | None = None,
        *,
        only: frozenset[int] | None = None,
    ) -> None:
        self.semantics, self.size = semantics, size
        self.totals = TaskTotals()
        self.counted_tokens = 0
        thresholds = np.zeros(0, np.uint64)
        if semantics.subsample is not None:
            if counts is None:
                raise ValueError("subsampling needs the counts of the tokens")
            thresholds = keep_thresholds(counts, semantics.subsample)
        self._rules = _cleaning_rules(semantics, size, thresholds)
        self._weights = _window_weights(semantics)
        self.capacity = chunk_capacity(memory, size)
        self._blob_bytes = max(SMALLEST_BLOB, min(4 << 20, memory // 16))
        rows_by_block = _rows_by_block(block_of)
        self._rows = [rows for rows in rows_by_block if only is None or int(block_of[rows[0]]) in only]
        self._blocks = [int(block_of[rows[0]]) for rows in self._rows]
        self._wanted = np.zeros(size + 1, np.uint8)
        for rows in self._rows:
            self._wanted[rows] = 1
        self._ids = np.empty(self.capacity, np.uint32)
        self._filled = 0
        self._bounds: list[np.ndarray] = [np.zeros(1, np.int64)]
        self._owned: list[np.ndarray] = []
        self._accumulators = empty_accumulators(size)

    def count(self, chunks: Iterator[TokenChunk]) -> Iterator[PackedRows]:
        """The packed rows of all chunks; rows of a block may come several times."""
        for chunk in chunks:
            ids, bounds, overlap = self._clean(chunk)
            if self._filled and self._filled + len(ids) > self.capacity:
                yield from self._flush()
            if len(ids) > len(self._ids):
                self._ids = np.empty(len(ids), np.uint32)
            self._append(ids, bounds, overlap)
        yield from self._flush()

    def cells(self, chunks: Iterator[TokenChunk]) -> Iterator[tuple[int, BlockTotals, Iterator[SortedCells]]]:
        """Every block with its totals and its sorted cells: counted from all chunks at once, nothing to merge.

        The totals are whole when the cells are used up.
        """
        for chunk in chunks:
            ids, bounds, overlap = self._clean(chunk)
            if self._filled + len(ids) > len(self._ids):
                larger = np.empty(max(2 * len(self._ids), self._filled + len(ids)), np.uint32)
                larger[: self._filled] = self._ids[: self._filled]
                self._ids = larger
            self._append(ids, bounds, overlap)
        self.totals.chunks += 1
        if not self._owned:
            self._owned.append(np.zeros(0, np.int64))
        occurrences = self._occurrences()
        for block, rows in zip(self._blocks, self._rows, strict=True):
            totals = BlockTotals.zeros(self.semantics, self.size)
            yield block, totals, self._block_cells(rows, occurrences, totals)

    def _block_cells(self, rows: np.ndarray, occurrences: Occurrences, totals: BlockTotals) -> Iterator[SortedCells]:
        rules = finishing_rules(self.semantics, MAXIMUM_UNITS)
        cells = empty_cell_columns(max(self.size + 1, LARGEST_OUTPUT))
        sums = BlockSums(totals.row_units, totals.col_units, np.zeros(2, np.int64))
        index = pending = 0
        state = OUTPUT_FULL
        while state == OUTPUT_FULL:
            index, pending, written, state = count_cells(
                rows, index, pending, occurrences, self._weights, self._accumulators, rules, cells, sums
            )
            if state == OVERFLOW:
                raise overflow_error(int(rows[index]), MAXIMUM_UNITS, self.semantics)
            if written:
                totals.cells += int(written)
                self.totals.cells += int(written)
                yield SortedCells.copied(cells, written)
        totals.add_pruned(sums.pruned)

    def _clean(self, chunk: TokenChunk) -> tuple[np.ndarray, np.ndarray, int]:
        """Ids that hold a place, segment bounds, and how many ids at the start are context only."""
        ids, bounds = self._cleaned(DocumentTokens(chunk.tokens, chunk.offsets, chunk.keys, chunk.first), 1)
        self.totals.documents += int(chunk.first == 0) + len(chunk.keys) - 1
        self.totals.tokens += len(chunk.tokens) - chunk.overlap
        if not chunk.overlap:
            return ids, bounds, 0
        offsets = np.array([0, chunk.overlap], np.int64)
        context, cuts = self._cleaned(
            DocumentTokens(chunk.tokens[: chunk.overlap], offsets, chunk.keys[:1], chunk.first), -1
        )
        if (
            self.semantics.oov == "close_gap"
            and len(context) < self.semantics.window
            and chunk.first
            and len(cuts) == 2
        ):
            raise InputError(
                f"a long document was cut with a context of {chunk.overlap:,} tokens, of which subsampling leaves "
                f"{len(context)}; {self.semantics.window} are needed: choose a larger cooccurrence.subsample or oov "
                "keep_distance"
            )
        return ids, bounds, len(context)

    def _cleaned(self, documents: DocumentTokens, sign: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids that hold a place and segment bounds; the totals get `sign` times what is kept and subsampled."""
        tokens = documents.tokens
        breaking = [-code for code in range(1, 5) if self._rules.actions[code] == BREAK]
        breaks = sum(int(np.count_nonzero(tokens == marker)) for marker in breaking)
        out = np.empty(len(tokens), np.uint32)
        bounds = np.empty(1 + len(documents.keys) + breaks, np.int64)
        filled, segments, kept, subsampled, bad = clean_tokens(documents, self._rules, out, bounds)
        if bad >= 0:
            raise InputError(
                f"the encoded documents hold the id {int(tokens[bad])}, expected 0 .. {self.size - 1} or a marker "
                "-4 .. -1: they belong to another vocabulary; run the vocabulary stage again (--force)"
            )
        self.totals.kept += sign * int(kept)
        self.totals.subsampled += sign * int(subsampled)
        return out[: int(filled)], bounds[: int(segments)]

    def _append(self, ids: np.ndarray, bounds: np.ndarray, overlap: int) -> None:
        at = self._filled
        self._ids[at : at + len(ids)] = ids
        self._filled = at + len(ids)
        self._bounds.append(bounds[1:] + at)
        self._owned.append(np.maximum(bounds[:-1], overlap) + at)

    def _flush(self) -> Iterator[PackedRows]:
        """Count what was collected."""
        if self._filled == 0:
            return
        occurrences = self._occurrences()
        self.totals.chunks += 1
        before = self.counted_tokens
        for number, (block, rows) in enumerate(zip(self._blocks, self._rows, strict=True)):
            self.counted_tokens = before + (self.totals.tokens - before) * number // len(self._blocks)
            index = pending = 0
            buffer = np.empty(self._blob_bytes, np.uint8)
            while index < len(rows):
                index, pending, used, packed, cells = count_packed_rows(
                    rows, index, pending, occurrences, self._weights, self._accumulators, buffer
                )
                if packed:
                    self.totals.cells += cells
                    self.totals.packed_bytes += used
                    yield PackedRows(block, packed, cells, buffer[:used].tobytes())
                needed = pending * MAXIMUM_ENTRY + ROW_HEADER
                if pending:
                    buffer = np.empty(max(self._blob_bytes, needed), np.uint8)

    def _occurrences(self) -> Occurrences:
        """The positions of every wanted token in what was collected, which is then forgotten."""
        segments = TokenSegments(self._ids[: self._filled], np.concatenate(self._bounds), np.concatenate(self._owned))
        self._bounds, self._owned, self._filled = [np.zeros(1, np.int64)], [], 0
        start = np.zeros(self.size + 2, np.int64)
        total = int(start_positions(segments.ids, self._wanted, start))
        positions = np.empty(total + PREFETCH_DISTANCE, np.uint32)
        reach = np.empty(total + PREFETCH_DISTANCE, np.uint32)
        occurrences = Occurrences(segments.ids, start, positions, reach, self._owners(segments))
        left, right = len(self._weights.left64) - 1, len(self._weights.right64) - 1
        list_positions(segments, self._wanted, left, right, occurrences)
        return occurrences

    def _owners(self, segments: TokenSegments) -> np.ndarray:
        """Occurrences of every token that belong to this chunk, where the diagonal needs them."""
        if not self.semantics.self_units:
            return np.zeros(0, np.int64)
        ids, bounds, owned = segments
        occurrences = np.bincount(ids, minlength=self.size + 1)
        for segment in np.flatnonzero(owned > bounds[:-1]):
            context = ids[bounds[segment] : min(owned[segment], bounds[segment + 1])]
            occurrences -= np.bincount(context, minlength=self.size + 1)
        return occurrences.astype(np.int64)


def _cleaning_rules(semantics: Semantics, size: int, thresholds: np.ndarray) -> CleaningRules:
    unknown = {"keep_distance": HOLD, "close_gap": REMOVE, "boundary": BREAK}[semantics.oov]
    paragraph = BREAK if semantics.boundary in ("paragraph", "sentence") else REMOVE
    sentence = BREAK if semantics.boundary == "sentence" else REMOVE
    return CleaningRules(
        actions=np.array([0, unknown, paragraph, sentence, BREAK], np.int64),
        size=size,
        thresholds=thresholds,
        seed=semantics.seed,
        dropped=REMOVE if semantics.oov == "close_gap" else HOLD,
    )


def _window_weights(semantics: Semantics) -> WindowWeights:
    left, right = semantics.weights()
    # A sum of n positions is at most n units_per_occurrence.
    narrow_positions = (2**32 - 2) // max(semantics.units_per_occurrence, 1)
    left32, right32 = (
        side.astype(np.uint32) if narrow_positions else np.zeros_like(side, np.uint32) for side in (left, right)
    )
    return WindowWeights(
        left32=left32,
        right32=right32,
        left64=left,
        right64=right,
        self_units=semantics.self_units,
        narrow_positions=narrow_positions,
        drop_diagonal=semantics.diagonal == "drop",
    )


def _rows_by_block(block_of: np.ndarray) -> list[np.ndarray]:
    """Ids of the rows of every block that has any, ascending: uint32 arrays."""
    if not len(block_of):
        return []
    order = np.argsort(block_of, kind="stable")
    bounds = np.flatnonzero(np.diff(block_of[order])) + 1
    return [rows.astype(np.uint32) for rows in np.split(order, bounds)]


def context_tokens(semantics: Semantics, counts: np.ndarray | None) -> int:
    """Tokens in the vocabulary to repeat where a document is cut, so that a window of kept ones is among them."""
    if semantics.subsample is None or semantics.oov != "close_gap" or counts is None:
        return semantics.window
    least = float(keep_thresholds(counts, semantics.subsample).min(initial=1)) / 2.0**64
    return min(1 << 20, 256 + math.ceil(16 * semantics.window / max(least, 1e-6)))


def direct_bytes(tokens: int, size: int, tasks: int) -> int:
    """Memory of a task that counts its share of the rows over all tokens."""
    return VOCABULARY_BYTES * size + 4 * tokens + (TOKEN_BYTES - 4) * tokens * 9 // (8 * tasks)


def chunk_capacity(memory: int, size: int) -> int:
    """Tokens counted at a time within `memory` bytes; half of it is left to reading and writing.

    Raises
    ------
    InputError
        Not even a small chunk fits.
    """
    needed = VOCABULARY_BYTES * size + TOKEN_BYTES * SMALLEST_CHUNK
    if 2 * needed > max(memory, 4 << 20):
        raise InputError(
            f"cooccurrence.memory_per_task is {memory:,} bytes; a vocabulary of {size:,} tokens needs at least "
            f"{2 * needed:,}"
        )
    room = (memory // 2 - VOCABULARY_BYTES * size) // TOKEN_BYTES
    return int(min(max(room, SMALLEST_CHUNK), 2**31))
