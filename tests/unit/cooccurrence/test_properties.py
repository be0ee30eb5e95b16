"""Any meaning, any text, any cut of the work: the counts are those of brute force, to the unit."""

from __future__ import annotations

from contextlib import ExitStack
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.cooccurrence import count_pairs

from wals_spark.config import CooccurrenceConfig
from wals_spark.cooccurrence import merge, window
from wals_spark.cooccurrence.merge import BlockMerger
from wals_spark.cooccurrence.semantics import keep_thresholds, semantics_of
from wals_spark.cooccurrence.window import WindowCounter
from wals_spark.token_shards import SPECIAL, TokenChunk

SIZES = st.integers(1, 9)
PRESETS = ["glove", "swivel", "hyperwords", "text2vec"]


@st.composite
def configurations(draw):
    """A preset as it is, or every key by itself."""
    subsample = draw(st.none() | st.sampled_from([0.02, 0.1, 0.4]))
    if draw(st.integers(0, 4)) == 0:
        return CooccurrenceConfig(preset=draw(st.sampled_from(PRESETS)), subsample=subsample)
    left = draw(st.integers(0, 12))
    right = draw(st.integers(0 if left else 1, 12) | st.just(left or 1))
    diagonals = ["keep", "drop", "occurrences"] + ["once"] * (left == right)
    return CooccurrenceConfig(
        window_left=left,
        window_right=right,
        distance_weighting=draw(st.sampled_from(["inverse", "linear", "none"])),
        boundary=draw(st.sampled_from(["document", "paragraph", "sentence"])),
        oov=draw(st.sampled_from(["keep_distance", "close_gap", "boundary"])),
        diagonal=draw(st.sampled_from(diagonals)),
        subsample=subsample,
        min_pair_count=draw(st.sampled_from([0.0, 0.0, 0.5, 2.0])),
        unit_bits=draw(st.none() | st.integers(0, 40)),
    )


@st.composite
def texts(draw):
    """The number of tokens in the vocabulary, and documents of ids and markers with their keys."""
    size = draw(SIZES)
    tokens = st.lists(st.integers(SPECIAL, size - 1) | st.integers(0, size - 1), max_size=40)
    return size, draw(st.lists(st.tuples(st.integers(0, 2**64 - 1), tokens), min_size=1, max_size=6))


def chunks_of(documents, length):
    """Documents cut after every `length` tokens, the text before repeated as context; one document per chunk."""
    for key, tokens in documents:
        for low in range(0, max(1, len(tokens)), length):
            part = np.array(tokens[: low + length], np.int32)
            yield TokenChunk(part, np.array([0, len(part)]), low, np.array([key], np.uint64), 0)


def whole(documents):
    """All documents in one chunk."""
    tokens = np.array([token for _, document in documents for token in document], np.int32)
    offsets = np.cumsum([0] + [len(document) for _, document in documents]).astype(np.int64)
    return [TokenChunk(tokens, offsets, 0, np.array([key for key, _ in documents], np.uint64), 0)]


def add_cells(pairs, cells):
    """Sorted cells into the pairs, none of them twice."""
    for i, j, units in zip(cells.rows.tolist(), cells.cols.tolist(), cells.units.tolist(), strict=True):
        assert (i, j) not in pairs
        pairs[i, j] = units


@pytest.mark.slow
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    text=texts(),
    config=configurations(),
    seed=st.integers(0, 2**63 - 1),
    blocks=st.integers(1, 4),
    tasks=st.integers(1, 3),
    length=st.integers(3, 40) | st.none(),
    bounds=st.fixed_dictionaries(
        {
            "chunk": st.sampled_from([1, 20, 1 << 16]),
            "blob": st.sampled_from([16, 100, 1 << 14]),
            "merge": st.sampled_from([64, 300, 1 << 18]),
            "part": st.sampled_from([16, 64, 1 << 14]),
        }
    ),
)
def test_counts_are_those_of_brute_force(text, config, seed, blocks, tasks, length, bounds):
    size, documents = text
    semantics = semantics_of(config, seed)
    occurrences = [token for _, tokens in documents for token in tokens if token >= 0]
    counts = np.bincount(occurrences, minlength=size)
    thresholds = None
    if semantics.subsample is not None:
        thresholds = dict(enumerate(keep_thresholds(counts, semantics.subsample).tolist()))
    expected = count_pairs(documents, semantics, thresholds)
    block_of = np.arange(size) % blocks

    def chunks(some):
        return iter(whole(some) if length is None else list(chunks_of(some, length)))

    with ExitStack() as patches:
        patches.enter_context(patch.object(window, "SMALLEST_CHUNK", bounds["chunk"]))
        patches.enter_context(patch.object(window, "SMALLEST_BLOB", bounds["blob"]))
        patches.enter_context(patch.object(merge, "SMALLEST_BOUND", bounds["merge"]))
        patches.enter_context(patch.object(merge, "SMALLEST_PART", bounds["part"]))
        shuffled: dict = {}
        for task in range(tasks):
            counter = WindowCounter(semantics, size, block_of, 1, counts)
            for blob in counter.count(chunks(documents[task::tasks])):
                shuffled.setdefault(blob.block, []).append((blob.rows, blob.payload))
        merged: dict = {}
        for blobs in shuffled.values():
            for cells in BlockMerger(semantics, size, 1).merge(blobs):
                add_cells(merged, cells)
        direct: dict = {}
        for task in range(tasks):
            only = frozenset(range(task, blocks, tasks))
            for _, _, parts in WindowCounter(semantics, size, block_of, 1, counts, only=only).cells(chunks(documents)):
                for cells in parts:
                    add_cells(direct, cells)
    assert merged == expected
    assert direct == expected
