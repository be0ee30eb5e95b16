"""Token shards to chunks of global ids and markers, with context where a chunk starts inside a document."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from wals_spark import storage
from wals_spark.token_shards.layout import PARAGRAPH, SENTENCE, Ints, Longs, TokenShard
from wals_spark.token_shards.local_ids import local_to_global
from wals_spark.token_shards.writer import BATCH_TOKENS

Boundary = Literal["document", "paragraph", "sentence"]


@dataclass(frozen=True)
class BatchRange:
    """Record batches ``start <= b < stop`` of a shard: a unit of work of bounded size.

    Attributes
    ----------
    path : str
        Of the shard.
    start, stop : int
    tokens : int
        Tokens in them, markers not counted.
    """

    path: str
    start: int
    stop: int
    tokens: int


@dataclass(frozen=True)
class TokenChunk:
    """Consecutive tokens of whole documents, or of a part of one long document.

    Attributes
    ----------
    tokens : int32 array of shape (n,)
        Global ids, or `OOV`, `SPECIAL` and the markers asked for.
    offsets : int64 array of shape (documents + 1,)
        Document d is ``tokens[offsets[d]:offsets[d + 1]]``.
    overlap : int
        Number of leading tokens that repeat the chunk before, as context: a pair is to be counted here only
        where its later token lies at or after `overlap`. They belong to document 0.
    keys : uint64 array of shape (documents,)
        `document_key` of each document.
    first : int
        Position in document 0 of ``tokens[0]``; the other documents start at position 0.
    """

    tokens: Ints
    offsets: Longs
    overlap: int
    keys: npt.NDArray[np.uint64]
    first: int


def split_shards(shards: Iterable[TokenShard], range_tokens: int) -> list[BatchRange]:
    """Cut shards into ranges of record batches with about `range_tokens` tokens, at least one batch each."""
    ranges = []
    for shard in shards:
        start = tokens = 0
        for index, size in enumerate(shard.batches):
            if tokens and tokens + size > range_tokens:
                ranges.append(BatchRange(shard.path, start, index, tokens))
                start, tokens = index, 0
            tokens += size
        if start < len(shard.batches):
            ranges.append(BatchRange(shard.path, start, len(shard.batches), tokens))
    return ranges


def read_shards(
    paths: Iterable[str], max_tokens: int = BATCH_TOKENS, *, boundary: Boundary = "document", context: int = 255
) -> Iterator[TokenChunk]:
    """Read whole shards.

    Parameters
    ----------
    paths : iterable of str
        Of the shards.
    max_tokens : int
        See `read_batch_ranges`, as for the next two.
    boundary : {"document", "paragraph", "sentence"}
    context : int

    Yields
    ------
    TokenChunk
    """
    for path in paths:
        ids = local_to_global(path)
        yield from _read_range(path, ids, 0, None, max_tokens=max_tokens, boundary=boundary, context=context)


def read_batch_ranges(
    ranges: Iterable[BatchRange], max_tokens: int = BATCH_TOKENS, *, boundary: Boundary = "document", context: int = 255
) -> Iterator[TokenChunk]:
    """Read ranges of record batches in chunks of at most `max_tokens` tokens.

    Parameters
    ----------
    ranges : iterable of BatchRange
        Those of one shard follow each other.
    max_tokens : int
        Largest number of tokens of a chunk; overlap and markers come on top.
    boundary : {"document", "paragraph", "sentence"}
        Which markers stand between the tokens: none, `PARAGRAPH`, or `PARAGRAPH` and `SENTENCE`. They
        come after the last token of the paragraph or sentence, and never at the end of a document.
    context : int
        Where a chunk starts inside a document, it repeats enough tokens for `context` of them to be in
        the vocabulary, or all tokens from the document's start.

    Yields
    ------
    TokenChunk

    Raises
    ------
    ValueError
        `max_tokens` is below 1.
    """
    for path, parts in itertools.groupby(ranges, lambda part: part.path):
        ids = local_to_global(path)
        for part in parts:
            yield from _read_range(
                path, ids, part.start, part.stop, max_tokens=max_tokens, boundary=boundary, context=context
            )


def _read_range(
    path: str,
    to_global: Ints | None,
    start: int,
    stop: int | None,
    *,
    max_tokens: int,
    boundary: Boundary,
    context: int,
) -> Iterator[TokenChunk]:
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}, expected at least 1")
    with _open_shard(path) as source:
        reader = pa.ipc.open_file(source)
        tail = _context_before(reader, start, to_global, boundary, context)
        for index in range(start, reader.num_record_batches if stop is None else stop):
            batch = reader.get_batch(index)
            tokens, offsets = _decode_batch(batch, to_global, boundary)
            keys = batch.column("key").to_numpy()
            firsts = batch.column("first").to_numpy()
            for chunk in _cut_batch(tokens, offsets, keys, firsts, tail=tail, max_tokens=max_tokens, context=context):
                yield chunk
                tail = _context_of(chunk.tokens[chunk.offsets[-2] :], context)


def _open_shard(path: str) -> pa.NativeFile:
    if storage.is_local(path):
        return pa.memory_map(storage.local_path(path))
    fs, inner = storage.filesystem(path)
    return fs.open_input_file(inner)


def _cut_batch(
    tokens: Ints,
    offsets: Longs,
    keys: npt.NDArray[np.uint64],
    firsts: Longs,
    *,
    tail: Ints,
    max_tokens: int,
    context: int,
) -> Iterator[TokenChunk]:
    """Cut a batch into chunks: whole documents where they fit, parts with overlap where one does not."""
    documents = len(keys)
    start = 0
    while start < documents:
        overlap = tail if firsts[start] > 0 else tail[:0]
        stop = int(np.searchsorted(offsets, offsets[start] + max_tokens, side="right")) - 1
        if stop > start:
            part = tokens[offsets[start] : offsets[stop]]
            bounds = offsets[start : stop + 1] - offsets[start]
            if len(overlap):
                part, bounds = np.concatenate([overlap, part]), bounds + len(overlap)
                bounds[0] = 0
            first = int(firsts[start]) - _positions(overlap)
            yield TokenChunk(part, bounds, len(overlap), keys[start:stop], first)
            tail = tail[:0]
            start = stop
            continue
        position = int(firsts[start])
        for low in range(int(offsets[start]), int(offsets[start + 1]), max_tokens):
            body = tokens[low : min(low + max_tokens, int(offsets[start + 1]))]
            part = np.concatenate([overlap, body])
            bounds = np.array([0, len(part)], np.int64)
            yield TokenChunk(part, bounds, len(overlap), keys[start : start + 1], position - _positions(overlap))
            position += _positions(body)
            overlap = _context_of(part, context)
        start += 1


def _positions(tokens: Ints) -> int:
    """Tokens that have a position, that is, all but markers."""
    return len(tokens) - int(np.count_nonzero((tokens == PARAGRAPH) | (tokens == SENTENCE)))


def _context_of(tokens: Ints, context: int) -> Ints:
    """The shortest end of a document's tokens with `context` of them in the vocabulary."""
    size = max(context, 1)
    while size < len(tokens) and np.count_nonzero(tokens[-size:] >= 0) < context:
        size *= 2
    return tokens[-size:].copy() if context else tokens[:0]


def _context_before(
    reader: pa.RecordBatchFileReader, start: int, to_global: Ints | None, boundary: Boundary, context: int
) -> Ints:
    """The context of a range that starts inside a document."""
    empty = np.zeros(0, np.int32)
    if start == 0 or start >= reader.num_record_batches or not reader.get_batch(start).column("first")[0].as_py():
        return empty
    tail = empty
    for index in range(start - 1, -1, -1):
        batch = reader.get_batch(index)
        tokens, offsets = _decode_batch(batch, to_global, boundary)
        last = tokens[offsets[-2] :]
        tail = np.concatenate([last, tail])
        if np.count_nonzero(tail >= 0) >= context or len(batch) > 1 or not batch.column("first")[-1].as_py():
            break
    return _context_of(tail, context)


def _decode_batch(batch: pa.RecordBatch, to_global: Ints | None, boundary: Boundary) -> tuple[Ints, Longs]:
    """Global ids with markers, and offsets, of a record batch."""
    lists = batch.column("token_ids")
    tokens = lists.values.to_numpy()
    offsets = lists.offsets.to_numpy().astype(np.int64)
    if to_global is not None:
        tokens = to_global[tokens]  # negative ids index the markers at its end
    if boundary == "document":
        return tokens, offsets
    breaks = batch.column("breaks")
    codes = breaks.values.to_numpy().astype(np.int64)
    counts = np.diff(breaks.offsets.to_numpy())
    after = (codes >> 1) + 1 + np.repeat(offsets[:-1], counts)
    is_paragraph = (codes & 1) == 1
    kept = np.ones(len(codes), bool) if boundary == "sentence" else is_paragraph
    after, marks = after[kept], np.where(is_paragraph[kept], PARAGRAPH, SENTENCE).astype(np.int32)
    document = np.repeat(np.arange(len(counts)), counts)[kept]
    added = np.zeros(len(offsets), np.int64)
    added[1:] = np.cumsum(np.bincount(document, minlength=len(counts)))
    return np.insert(tokens, after, marks), offsets + added
