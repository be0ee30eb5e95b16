from __future__ import annotations

import numpy as np
import pytest

from wals_spark import token_shards
from wals_spark.errors import InputError
from wals_spark.token_shards import (
    OOV,
    PARAGRAPH,
    SENTENCE,
    SPECIAL,
    ShardWriter,
    list_shards,
    read_batch_ranges,
    read_shards,
    split_shards,
)


def write_documents(path, documents, breaks=None):
    """One shard; `documents` are lists of ids, `breaks` lists of codes."""
    tokens = np.array([t for d in documents for t in d], np.int32)
    offsets = np.cumsum([0, *map(len, documents)]).astype(np.int64)
    writer = ShardWriter(str(path))
    if breaks is None:
        writer.write([f"d{i}" for i in range(len(documents))], tokens, offsets)
    else:
        codes = np.array([c for d in breaks for c in d], np.int32)
        bounds = np.cumsum([0, *map(len, breaks)]).astype(np.int64)
        writer.write([f"d{i}" for i in range(len(documents))], tokens, offsets, codes, bounds)
    return writer.close()


def documents_of(chunks):
    """Whole documents, put together again without the overlaps, by key in order of appearance."""
    found: dict[int, list[int]] = {}
    for chunk in chunks:
        for index, key in enumerate(chunk.keys):
            part = chunk.tokens[chunk.offsets[index] : chunk.offsets[index + 1]].tolist()
            found.setdefault(int(key), []).extend(part[chunk.overlap :] if index == 0 else part)
    return list(found.values())


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(token_shards.writer, "BATCH_TOKENS", 16)
    monkeypatch.setattr(token_shards.writer, "PIECE_TOKENS", 16)


def test_documents_come_back_as_written(tmp_path):
    documents = [[1, 2, 3], [], [4], [OOV, SPECIAL, 5]]
    shard = write_documents(tmp_path / "part-00000.arrow", documents)
    (chunk,) = read_shards([shard.path])
    assert documents_of([chunk]) == documents
    assert chunk.tokens.dtype == np.int32
    assert chunk.offsets.tolist() == [0, 3, 3, 4, 7]
    assert (chunk.overlap, chunk.first) == (0, 0)
    assert (shard.documents, shard.tokens) == (4, 7)


@pytest.mark.parametrize("max_tokens", [1, 3, 7, 16, 1000])
@pytest.mark.parametrize("context", [0, 1, 5, 255])
def test_any_chunk_size_gives_the_same_documents(tmp_path, small_pieces, max_tokens, context):
    rng = np.random.default_rng(max_tokens)
    documents = [rng.integers(-1, 50, size).tolist() for size in (3, 0, 100, 1, 16, 17, 15, 40)]
    shard = write_documents(tmp_path / "part-00000.arrow", documents)
    chunks = list(read_shards([shard.path], max_tokens, context=context))
    assert documents_of(chunks) == documents
    assert max(len(chunk.tokens) - chunk.overlap for chunk in chunks) <= max(max_tokens, 1)


def test_overlap_holds_enough_known_tokens(tmp_path, small_pieces):
    rng = np.random.default_rng(0)
    document = np.where(rng.random(500) < 0.7, OOV, rng.integers(0, 9, 500)).tolist()
    shard = write_documents(tmp_path / "part-00000.arrow", [document])
    for chunk in read_shards([shard.path], 8, context=6):
        start = chunk.first
        assert chunk.tokens.tolist() == document[start : start + len(chunk.tokens)]
        assert np.count_nonzero(chunk.tokens[: chunk.overlap] >= 0) >= 6 or start == 0


def test_a_span_starting_inside_a_document_has_its_context(tmp_path, small_pieces):
    document = list(range(100))
    shard = write_documents(tmp_path / "part-00000.arrow", [document])
    spans = split_shards([shard], 32)
    assert [span.tokens for span in spans] == [32, 32, 32, 4]
    chunks = [list(read_batch_ranges([span], context=20)) for span in spans]
    assert documents_of([chunk for part in chunks for chunk in part]) == [document]
    first = chunks[2][0]
    assert (first.overlap, first.first) == (20, 44)
    assert first.tokens[:20].tolist() == document[44:64]


def test_breaks_become_markers_by_boundary(tmp_path):
    shard = write_documents(tmp_path / "part-00000.arrow", [[1, 2, 3, 4], [5, 6]], [[0, 3, 4], [1]])
    seen = {
        boundary: documents_of(read_shards([shard.path], boundary=boundary))
        for boundary in ("document", "paragraph", "sentence")
    }
    assert seen["document"] == [[1, 2, 3, 4], [5, 6]]
    assert seen["paragraph"] == [[1, 2, PARAGRAPH, 3, 4], [5, PARAGRAPH, 6]]
    assert seen["sentence"] == [[1, SENTENCE, 2, PARAGRAPH, 3, SENTENCE, 4], [5, PARAGRAPH, 6]]


@pytest.mark.parametrize("max_tokens", [3, 16, 1000])
def test_markers_survive_cutting_a_long_document(tmp_path, small_pieces, max_tokens):
    document = list(range(70))
    shard = write_documents(tmp_path / "part-00000.arrow", [document], [[2 * p + p % 2 for p in range(0, 69, 5)]])
    chunks = list(read_shards([shard.path], max_tokens, boundary="sentence", context=4))
    (whole,) = documents_of(chunks)
    assert [token for token in whole if token >= 0] == document
    assert whole.count(PARAGRAPH) + whole.count(SENTENCE) == 14
    for chunk in chunks:
        positions = [token for token in chunk.tokens.tolist() if token >= 0]
        assert positions[0] == chunk.first


def test_local_ids_become_global_ones(tmp_path):
    shard = write_documents(tmp_path / "part-00000.arrow", [[0, 1, 2, 0]])
    token_shards.write_local_words(shard.path, np.array([70, 60, 50], np.uint64))
    token_shards.write_vocabulary(str(tmp_path), np.array([50, 70], np.uint64), np.array([0, 1], np.int32))
    token_shards.write_listing(str(tmp_path), [shard])
    (listed,) = list_shards(str(tmp_path))
    assert listed == shard
    assert documents_of(read_shards([listed.path])) == [[1, OOV, 0, 1]]


def test_a_directory_without_a_listing_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"shards.json is missing"):
        list_shards(str(tmp_path))


def test_an_aborted_shard_leaves_nothing(tmp_path):
    writer = ShardWriter(str(tmp_path / "part-00000.arrow"))
    writer.write(["a"], np.array([1], np.int32), np.array([0, 1]))
    writer.abort()
    assert list(tmp_path.iterdir()) == []
