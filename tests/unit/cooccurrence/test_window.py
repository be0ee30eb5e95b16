"""The counting kernel against brute force, on random and degenerate texts."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from oracles.cooccurrence import count_pairs

from wals_spark.config import CooccurrenceConfig
from wals_spark.cooccurrence.merge import BlockMerger
from wals_spark.cooccurrence.semantics import keep_thresholds, semantics_of
from wals_spark.cooccurrence.window import WindowCounter
from wals_spark.errors import InputError
from wals_spark.token_shards import OOV, SPECIAL, TokenChunk

MEMORY = 64 << 20


def chunk_of(documents, overlap=0, first=0):
    tokens = np.array([token for _, document in documents for token in document], np.int32)
    offsets = np.cumsum([0] + [len(document) for _, document in documents]).astype(np.int64)
    keys = np.array([key for key, _ in documents], np.uint64)
    return TokenChunk(tokens, offsets, overlap, keys, first)


def merged(semantics, size, blobs, memory=MEMORY, **options):
    """All blocks merged: the pairs, and the totals by block."""
    by_block: dict[int, list] = {}
    for blob in blobs:
        by_block.setdefault(blob.block, []).append((blob.rows, blob.payload))
    pairs, totals = {}, {}
    for block, parts in by_block.items():
        merger = BlockMerger(semantics, size, memory, **options)
        previous = (-1, -1)
        for cells in merger.merge(parts):
            for i, j, units in zip(cells.rows.tolist(), cells.cols.tolist(), cells.units.tolist(), strict=True):
                assert previous < (i, j), "cells must come sorted"
                previous = (i, j)
                pairs[i, j] = units
        totals[block] = merger.totals
    return pairs, totals


def counted(chunks, semantics, size, blocks=1, memory=MEMORY, counts=None):
    counter = WindowCounter(semantics, size, np.arange(size) % blocks, memory, counts)
    return merged(semantics, size, list(counter.count(iter(chunks))), memory)[0]


def counted_directly(chunks, semantics, size, blocks=1, tasks=1, counts=None):
    """Every task reads all chunks and counts its share of the blocks."""
    pairs = {}
    for task in range(tasks):
        only = frozenset(range(task, blocks, tasks))
        counter = WindowCounter(semantics, size, np.arange(size) % blocks, MEMORY, counts, only=only)
        for block, totals, parts in counter.cells(iter(chunks)):
            rows = Counter()
            for cells in parts:
                for i, j, units in zip(cells.rows.tolist(), cells.cols.tolist(), cells.units.tolist(), strict=True):
                    assert i % blocks == block
                    assert (i, j) not in pairs
                    pairs[i, j] = units
                    rows[i] += units
            assert {i: int(totals.row_units[i]) for i in rows} == rows
    assert list(pairs) == sorted(pairs) or blocks > 1
    return pairs


def check(documents, size, blocks=1, counts=None, **options):
    semantics = semantics_of(CooccurrenceConfig(**options), seed=7)
    thresholds = None
    if semantics.subsample is not None:
        thresholds = dict(enumerate(keep_thresholds(counts, semantics.subsample).tolist()))
    expected = count_pairs([(key, list(tokens)) for key, tokens in documents], semantics, thresholds)
    assert counted([chunk_of(documents)], semantics, size, blocks, counts=counts) == expected
    assert counted_directly([chunk_of(documents)], semantics, size, blocks, min(2, blocks), counts) == expected
    return expected


def random_documents(seed, size, documents=8, length=60, markers=True):
    rng = np.random.default_rng(seed)
    low = SPECIAL if markers else 0
    return [
        (int(rng.integers(0, 2**63)), rng.integers(low, size, rng.integers(0, length)).tolist())
        for _ in range(documents)
    ]


@pytest.mark.parametrize(
    "tokens",
    [[], [0], [0, 0], [0, 0, 0, 0], [0, 1], [1, 0, 1], [0, 1, 2, 0, 1], [OOV], [OOV, 0, OOV, OOV, 1], [SPECIAL, 0, 1]],
    ids=str,
)
@pytest.mark.parametrize("window", [1, 2, 200])
def test_small_documents(tokens, window):
    check([(1, tokens)], 3, window_left=window, window_right=window)


def test_windows_do_not_cross_documents():
    assert check([(1, [0]), (2, [1])], 2) == {}


def test_empty_documents_between():
    check([(1, []), (2, [0, 1]), (3, []), (4, []), (5, [1, 0])], 2)


@pytest.mark.parametrize("weighting", ["inverse", "none", "linear"])
@pytest.mark.parametrize(("left", "right"), [(10, 10), (0, 3), (3, 0), (1, 5), (255, 255)])
def test_window_and_weighting(weighting, left, right):
    check(random_documents(1, 9), 9, distance_weighting=weighting, window_left=left, window_right=right)


@pytest.mark.parametrize("boundary", ["document", "paragraph", "sentence"])
@pytest.mark.parametrize("oov", ["keep_distance", "close_gap", "boundary"])
def test_boundary_and_oov(boundary, oov):
    check(random_documents(2, 6), 6, boundary=boundary, oov=oov, window_left=4, window_right=4)


@pytest.mark.parametrize("diagonal", ["keep", "drop", "once", "occurrences"])
@pytest.mark.parametrize("blocks", [1, 3])
def test_diagonal(diagonal, blocks):
    check(random_documents(3, 4), 4, blocks, diagonal=diagonal, window_left=3, window_right=3)


@pytest.mark.parametrize("oov", ["keep_distance", "close_gap", "boundary"])
def test_subsampling(oov):
    documents = random_documents(4, 5, documents=20)
    counts = np.bincount([token for _, tokens in documents for token in tokens if token >= 0], minlength=5)
    all_of_them = check(documents, 5, oov=oov)
    some = check(documents, 5, counts=counts, oov=oov, subsample=0.05)
    assert 0 < sum(some.values()) < sum(all_of_them.values())


@pytest.mark.parametrize("minimum", [0.5, 1.0, 3.7])
def test_min_pair_count_prunes_last(minimum):
    documents = random_documents(5, 7)
    semantics = semantics_of(CooccurrenceConfig(min_pair_count=minimum))
    everything = count_pairs(documents, semantics_of(CooccurrenceConfig()))
    counter = WindowCounter(semantics, 7, np.zeros(7, np.int64), MEMORY)
    pairs, totals = merged(semantics, 7, list(counter.count(iter([chunk_of(documents)]))))
    assert pairs == {pair: units for pair, units in everything.items() if units >= minimum * semantics.unit}
    assert counted_directly([chunk_of(documents)], semantics, 7, 2, 2) == pairs
    assert totals[0].pruned_cells == len(everything) - len(pairs)
    assert totals[0].pruned_units == sum(everything.values()) - sum(pairs.values())


@pytest.mark.parametrize("bits", [0, 1, 5, 40])
def test_rounded_units(bits):
    check(random_documents(6, 5), 5, unit_bits=bits)


@pytest.mark.parametrize("preset", ["glove", "swivel", "hyperwords", "text2vec"])
def test_presets(preset):
    check(random_documents(7, 8), 8, 2, preset=preset)


@pytest.mark.parametrize("seed", range(10))
def test_random_configurations(seed):
    rng = np.random.default_rng(seed)
    window = rng.integers(0, 13, 2)
    check(
        random_documents(seed, int(rng.integers(1, 200)), documents=12, length=400),
        200,
        blocks=int(rng.integers(1, 7)),
        window_left=int(window[0]) + 1,
        window_right=int(window[1]),
        boundary=str(rng.choice(["document", "paragraph", "sentence"])),
        oov=str(rng.choice(["keep_distance", "close_gap", "boundary"])),
        diagonal=str(rng.choice(["keep", "drop", "occurrences"])),
    )


@pytest.mark.parametrize("oov", ["keep_distance", "close_gap"])
@pytest.mark.parametrize("diagonal", ["keep", "occurrences"])
def test_a_cut_document_counts_as_a_whole(oov, diagonal):
    """Chunks with context in front, as `wals_spark.token_shards` cuts them, in one task or in several."""
    semantics = semantics_of(CooccurrenceConfig(window_left=3, window_right=4, oov=oov, diagonal=diagonal))
    rng = np.random.default_rng(8)
    tokens = rng.integers(OOV, 4, 60).tolist()
    expected = count_pairs([(9, tokens)], semantics)
    for cut, context in itertools.product((7, 20), (15, 60)):
        chunks = [
            chunk_of(
                [(9, tokens[max(0, low - context) : low + cut])],
                overlap=low - max(0, low - context),
                first=max(0, low - context),
            )
            for low in range(0, len(tokens), cut)
        ]
        assert counted(chunks, semantics, 4) == expected
        assert counted_directly(chunks, semantics, 4, 3, 2) == expected
        blobs = [
            blob
            for chunk in chunks
            for blob in WindowCounter(semantics, 4, np.arange(4) % 2, MEMORY).count(iter([chunk]))
        ]
        assert merged(semantics, 4, blobs)[0] == expected


@pytest.mark.parametrize("subsample", [None, 0.3])
def test_tokens_that_are_context_only_are_kept_and_subsampled_once(subsample):
    semantics = semantics_of(CooccurrenceConfig(window_left=3, window_right=4, subsample=subsample))
    rng = np.random.default_rng(8)
    tokens = rng.integers(OOV, 4, 60).tolist()
    counts = np.array([50, 20, 5, 1])
    found = set()
    for cut in (7, 20, 60):
        counter = WindowCounter(semantics, 4, np.zeros(4, np.int64), MEMORY, counts if subsample else None)
        chunks = [
            chunk_of([(9, tokens[max(0, low - 15) : low + cut])], overlap=min(low, 15), first=max(0, low - 15))
            for low in range(0, len(tokens), cut)
        ]
        list(counter.count(iter(chunks)))
        found.add((counter.totals.tokens, counter.totals.kept, counter.totals.subsampled))
    assert len(found) == 1
    ((read, kept, subsampled),) = found
    assert read == 60
    assert kept + subsampled == sum(token >= 0 for token in tokens)
    assert (subsampled > 0) == (subsample is not None)


def test_any_number_of_tasks_and_blocks_gives_the_same():
    documents = random_documents(10, 50, documents=30, length=300)
    semantics = semantics_of(CooccurrenceConfig())
    expected = count_pairs(documents, semantics)
    for tasks, blocks in itertools.product((1, 2, 5), (1, 4, 50)):
        blobs = [
            blob
            for task in range(tasks)
            for blob in WindowCounter(semantics, 50, np.arange(50) % blocks, MEMORY).count(
                iter([chunk_of(documents[task::tasks])])
            )
        ]
        assert merged(semantics, 50, blobs)[0] == expected


def test_small_memory_spills_and_gives_the_same():
    documents = random_documents(11, 3000, documents=60, length=2000, markers=False)
    semantics = semantics_of(CooccurrenceConfig())
    counter = WindowCounter(semantics, 3000, np.zeros(3000, np.int64), 4 << 20)
    blobs = [
        blob
        for index in range(0, len(documents), 3)
        for blob in counter.count(iter([chunk_of(documents[index : index + 3])]))
    ]
    small, totals = merged(semantics, 3000, blobs, memory=1 << 20)
    large, _ = merged(semantics, 3000, blobs)
    assert totals[0].spilled_bytes > 1 << 20
    assert small == large == count_pairs(documents, semantics)


def test_a_cell_above_32_bits():
    """The accumulator of frequent tokens is wider than that of the others."""
    tokens = np.zeros(400_000, np.int32)
    semantics = semantics_of(CooccurrenceConfig(window_left=20, window_right=20))
    assert semantics.exact_unit
    pairs = counted([TokenChunk(tokens, np.array([0, len(tokens)]), 0, np.zeros(1, np.uint64), 0)], semantics, 1)
    exact = sum(2 * (len(tokens) - d) * semantics.left[d - 1] for d in range(1, 21))
    assert pairs == {(0, 0): exact}
    assert exact > 2**40


def test_overflow_is_an_error():
    semantics = semantics_of(CooccurrenceConfig())
    counter = WindowCounter(semantics, 2, np.zeros(2, np.int64), MEMORY)
    blobs = [blob for _ in range(3) for blob in counter.count(iter([chunk_of([(1, [0, 1] * 50)])]))]
    _, totals = merged(semantics, 2, blobs)
    largest = int(totals[0].row_units.max())
    assert merged(semantics, 2, blobs, limit=largest)[0]
    with pytest.raises(InputError, match="counts overflow"):
        merged(semantics, 2, blobs, limit=largest - 1)


def test_ids_outside_the_vocabulary_are_refused():
    semantics = semantics_of(CooccurrenceConfig())
    with pytest.raises(InputError, match=r"hold the id 5, expected 0 \.\. 4"):
        counted([chunk_of([(1, [0, 5])])], semantics, 5)


def test_memory_too_small_for_the_vocabulary():
    with pytest.raises(InputError, match="memory_per_task"):
        WindowCounter(semantics_of(CooccurrenceConfig()), 1_000_000, np.zeros(1_000_000, np.int64), 1 << 20)


def test_marginals_are_row_and_column_sums():
    documents = random_documents(12, 10)
    semantics = semantics_of(CooccurrenceConfig(window_left=2, window_right=5))
    counter = WindowCounter(semantics, 10, np.arange(10) % 3, MEMORY)
    pairs, totals = merged(semantics, 10, list(counter.count(iter([chunk_of(documents)]))))
    rows, cols = Counter(), Counter()
    for (i, j), units in pairs.items():
        rows[i] += units
        cols[j] += units
    assert sum(total.row_units for total in totals.values()).tolist() == [rows[i] for i in range(10)]
    assert sum(total.col_units for total in totals.values()).tolist() == [cols[j] for j in range(10)]
