"""Encoded documents: what the vocabulary stage writes and the co-occurrence stage counts.

A batch is a directory of shards, ``part-00000.arrow`` and so on, with ``shards.json`` written last. A
shard is an Arrow IPC file whose record batches hold about `BATCH_TOKENS` tokens each, one row per
*piece*: a document, or a part of a document longer than `PIECE_TOKENS`::

    doc_id string | key uint64 | first int64 | token_ids list<int32> | breaks list<int32>

``key`` is `document_key` of the id, ``first`` the position in its document of the piece's first token
(a piece with ``first > 0`` continues the row before it), ``breaks`` the ends of paragraphs and sentences:
``2 p + 1`` for a paragraph and ``2 p`` for a sentence that ends after the piece's token p.

Word shards hold ids that are local to the shard; ``part-00000.words.npy`` (uint64 hash of each local
word) and ``vocabulary.npy`` (hash, id; sorted by hash) translate them, so that text is tokenised once,
before the vocabulary is known. Readers see global ids and markers only.
"""

from __future__ import annotations

import io
import itertools
import posixpath
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from wals_spark import storage
from wals_spark.errors import InputError

OOV = -1
"""A token that is not in the vocabulary: it has a position, and no row."""
PARAGRAPH = -2
"""The end of a paragraph (a line break); has no position."""
SENTENCE = -3
"""The end of a sentence; has no position."""
SPECIAL = -4
"""A special token of the tokenizer: has a position, is never counted and never crossed."""

BATCH_TOKENS = 1 << 20
PIECE_TOKENS = 1 << 20
SHARDS = "shards.json"
VOCABULARY = "vocabulary.npy"
SCHEMA = pa.schema(
    [
        ("doc_id", pa.string()),
        ("key", pa.uint64()),
        ("first", pa.int64()),
        ("token_ids", pa.list_(pa.int32())),
        ("breaks", pa.list_(pa.int32())),
    ]
)
VOCABULARY_DTYPE = np.dtype([("hash", "<u8"), ("id", "<i4")])

Boundary = Literal["document", "paragraph", "sentence"]
Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]


def document_key(doc_id: str) -> int:
    """A stateless 64-bit hash of a document id: BLAKE2b, 8 bytes, little endian."""
    return int.from_bytes(blake2b(doc_id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class Shard:
    """A shard file: path, rows, and the tokens of each of its record batches."""

    path: str
    documents: int
    batches: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """All tokens of the shard, markers not counted."""
        return sum(self.batches)


@dataclass(frozen=True)
class Span:
    """Record batches ``start <= b < stop`` of a shard: a unit of work that is never too large."""

    path: str
    start: int
    stop: int
    tokens: int


@dataclass(frozen=True)
class Chunk:
    """Consecutive tokens of whole documents, or of a part of one long document.

    Attributes
    ----------
    tokens : int32 array of shape (n,)
        Global ids, or `OOV`, `SPECIAL` and the markers asked for.
    offsets : int64 array of shape (documents + 1,)
        Document d is ``tokens[offsets[d]:offsets[d + 1]]``.
    overlap : int
        The first so many tokens repeat the chunk before, as context: a pair is to be counted here only
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


class ShardWriter:
    """Writes one shard, in batches of about `BATCH_TOKENS` tokens.

    Parameters
    ----------
    path : str
        Of the ``.arrow`` file. It appears when the writer is closed without an error.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.batches: list[int] = []
        self.documents = 0
        self._temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
        fs, target = storage.filesystem(self._temporary)
        fs.create_dir(posixpath.dirname(target), recursive=True)
        self._sink = fs.open_output_stream(target)
        self._writer = pa.ipc.new_file(self._sink, SCHEMA, options=pa.ipc.IpcWriteOptions(compression="lz4"))

    def write(
        self,
        doc_ids: Sequence[str] | pa.Array,
        tokens: Ints,
        offsets: Longs,
        breaks: Ints | None = None,
        break_offsets: Longs | None = None,
    ) -> None:
        """Append whole documents; document d is ``tokens[offsets[d]:offsets[d + 1]]``, without markers.

        `breaks` of document d are ``breaks[break_offsets[d]:break_offsets[d + 1]]``, coded as in the
        module's description with positions from the document's start, ascending.
        """
        names = doc_ids.to_pylist() if isinstance(doc_ids, pa.Array) else list(doc_ids)
        if len(offsets) != len(names) + 1:
            raise ValueError(f"{len(names)} documents need {len(names) + 1} offsets, found {len(offsets)}")
        if breaks is None or break_offsets is None:
            breaks, break_offsets = np.zeros(0, np.int32), np.zeros(len(names) + 1, np.int64)
        keys = np.fromiter((document_key(name) for name in names), np.uint64, len(names))
        self.documents += len(names)
        start = 0
        while start < len(names):
            stop = int(np.searchsorted(offsets, offsets[start] + BATCH_TOKENS, side="right")) - 1
            if stop > start:
                self._batch(
                    names[start:stop],
                    keys[start:stop],
                    np.zeros(stop - start, np.int64),
                    _lists(tokens, offsets[start : stop + 1]),
                    _lists(breaks, break_offsets[start : stop + 1]),
                )
                start = stop
            else:
                self._write_pieces(
                    names[start],
                    keys[start : start + 1],
                    tokens[offsets[start] : offsets[start + 1]],
                    breaks[break_offsets[start] : break_offsets[start + 1]],
                )
                start += 1

    def _write_pieces(self, name: str, key: npt.NDArray[np.uint64], tokens: Ints, breaks: Ints) -> None:
        for first in range(0, len(tokens), PIECE_TOKENS):
            piece = tokens[first : first + PIECE_TOKENS]
            low, high = np.searchsorted(breaks, [2 * first, 2 * (first + len(piece))])
            self._batch(
                [name],
                key,
                np.array([first], np.int64),
                _lists(piece, np.array([0, len(piece)])),
                _lists((breaks[low:high] - 2 * first).astype(np.int32), np.array([0, high - low])),
            )

    def _batch(
        self, names: list[str], keys: npt.NDArray[np.uint64], first: Longs, tokens: pa.Array, breaks: pa.Array
    ) -> None:
        columns = [pa.array(names, pa.string()), pa.array(keys), pa.array(first), tokens, breaks]
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=SCHEMA))
        self.batches.append(len(tokens.values))

    def close(self) -> Shard:
        """Publish the file."""
        self._writer.close()
        self._sink.close()
        fs, temporary = storage.filesystem(self._temporary)
        _, path = storage.filesystem(self.path)
        fs.move(temporary, path)
        return Shard(self.path, self.documents, tuple(self.batches))

    def abort(self) -> None:
        """Remove what was written."""
        self._sink.close()
        storage.remove(self._temporary)


def _lists(values: npt.NDArray[Any], offsets: Longs) -> pa.Array:
    low, high = int(offsets[0]), int(offsets[-1])
    relative = pa.array((offsets - low).astype(np.int32))
    return pa.ListArray.from_arrays(relative, pa.array(values[low:high], pa.int32()))


def write_local_words(shard_path: str, hashes: npt.NDArray[np.uint64]) -> None:
    """Store the hash of each local word of a shard, beside it."""
    _save(_words_path(shard_path), hashes)


def write_vocabulary(directory: str, hashes: npt.NDArray[np.uint64], ids: Ints) -> None:
    """Store the hash of each word of the vocabulary: what turns local ids into global ones."""
    table = np.empty(len(hashes), VOCABULARY_DTYPE)
    order = np.argsort(hashes, kind="stable")
    table["hash"], table["id"] = hashes[order], ids[order]
    _save(storage.join(directory, VOCABULARY), table)


def write_listing(directory: str, shards: Iterable[Shard]) -> None:
    """Store the list of shards, in order: the directory is whole from here on."""
    entries = [{**asdict(shard), "path": posixpath.basename(shard.path)} for shard in shards]
    storage.write_json(storage.join(directory, SHARDS), {"format_version": 1, "shards": entries})


def list_shards(directory: str) -> list[Shard]:
    """The shards of a batch, in order.

    Raises
    ------
    InputError
        There is no whole batch at `directory`.
    """
    listing = storage.join(directory, SHARDS)
    if not storage.exists(listing):
        raise InputError(f"{directory} holds no encoded documents ({SHARDS} is missing); run `wals-spark vocabulary`")
    return [
        Shard(storage.join(directory, entry["path"]), entry["documents"], tuple(entry["batches"]))
        for entry in storage.read_json(listing)["shards"]
    ]


def split(shards: Iterable[Shard], span_tokens: int) -> list[Span]:
    """Cut shards into spans of about `span_tokens` tokens, at least one record batch each."""
    spans = []
    for shard in shards:
        start = tokens = 0
        for index, size in enumerate(shard.batches):
            if tokens and tokens + size > span_tokens:
                spans.append(Span(shard.path, start, index, tokens))
                start, tokens = index, 0
            tokens += size
        if start < len(shard.batches):
            spans.append(Span(shard.path, start, len(shard.batches), tokens))
    return spans


def read_shards(
    paths: Iterable[str], max_tokens: int = BATCH_TOKENS, *, boundary: Boundary = "document", context: int = 255
) -> Iterator[Chunk]:
    """Read whole shards; see `read_spans`."""
    for path in paths:
        ids = _local_to_global(path)
        yield from _read(path, ids, 0, None, max_tokens=max_tokens, boundary=boundary, context=context)


def read_spans(
    spans: Iterable[Span], max_tokens: int = BATCH_TOKENS, *, boundary: Boundary = "document", context: int = 255
) -> Iterator[Chunk]:
    """Read spans in chunks of at most `max_tokens` tokens (overlap and markers come on top).

    Parameters
    ----------
    boundary : {"document", "paragraph", "sentence"}
        Which markers stand between the tokens: none, `PARAGRAPH`, or `PARAGRAPH` and `SENTENCE`. They
        come after the last token of the paragraph or sentence, and never at the end of a document.
    context : int
        Where a chunk starts inside a document, it repeats enough tokens for `context` of them to be in
        the vocabulary, or all tokens from the document's start.
    """
    for path, parts in itertools.groupby(spans, lambda span: span.path):
        ids = _local_to_global(path)
        for span in parts:
            yield from _read(
                path, ids, span.start, span.stop, max_tokens=max_tokens, boundary=boundary, context=context
            )


def _read(
    path: str,
    to_global: Ints | None,
    start: int,
    stop: int | None,
    *,
    max_tokens: int,
    boundary: Boundary,
    context: int,
) -> Iterator[Chunk]:
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}, expected at least 1")
    with _open(path) as source:
        reader = pa.ipc.open_file(source)
        tail = _tail_before(reader, start, to_global, boundary, context)
        for index in range(start, reader.num_record_batches if stop is None else stop):
            batch = reader.get_batch(index)
            tokens, offsets = _decode(batch, to_global, boundary)
            keys = batch.column("key").to_numpy()
            firsts = batch.column("first").to_numpy()
            for chunk in _chunks(tokens, offsets, keys, firsts, tail=tail, max_tokens=max_tokens, context=context):
                yield chunk
                tail = _tail(chunk.tokens[chunk.offsets[-2] :], context)


def _open(path: str) -> pa.NativeFile:
    if storage.is_local(path):
        return pa.memory_map(storage.local_path(path))
    fs, inner = storage.filesystem(path)
    return fs.open_input_file(inner)


def _chunks(
    tokens: Ints,
    offsets: Longs,
    keys: npt.NDArray[np.uint64],
    firsts: Longs,
    *,
    tail: Ints,
    max_tokens: int,
    context: int,
) -> Iterator[Chunk]:
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
            yield Chunk(part, bounds, len(overlap), keys[start:stop], first)
            tail = tail[:0]
            start = stop
            continue
        position = int(firsts[start])
        for low in range(int(offsets[start]), int(offsets[start + 1]), max_tokens):
            body = tokens[low : min(low + max_tokens, int(offsets[start + 1]))]
            part = np.concatenate([overlap, body])
            bounds = np.array([0, len(part)], np.int64)
            yield Chunk(part, bounds, len(overlap), keys[start : start + 1], position - _positions(overlap))
            position += _positions(body)
            overlap = _tail(part, context)
        start += 1


def _positions(tokens: Ints) -> int:
    """Tokens that have a position, that is, all but markers."""
    return len(tokens) - int(np.count_nonzero((tokens == PARAGRAPH) | (tokens == SENTENCE)))


def _tail(tokens: Ints, context: int) -> Ints:
    """The shortest end of a document's tokens with `context` of them in the vocabulary."""
    size = max(context, 1)
    while size < len(tokens) and np.count_nonzero(tokens[-size:] >= 0) < context:
        size *= 2
    return tokens[-size:].copy() if context else tokens[:0]


def _tail_before(
    reader: pa.RecordBatchFileReader, start: int, to_global: Ints | None, boundary: Boundary, context: int
) -> Ints:
    """The context of a span that starts inside a document."""
    empty = np.zeros(0, np.int32)
    if start == 0 or start >= reader.num_record_batches or not reader.get_batch(start).column("first")[0].as_py():
        return empty
    tail = empty
    for index in range(start - 1, -1, -1):
        batch = reader.get_batch(index)
        tokens, offsets = _decode(batch, to_global, boundary)
        last = tokens[offsets[-2] :]
        tail = np.concatenate([last, tail])
        if np.count_nonzero(tail >= 0) >= context or len(batch) > 1 or not batch.column("first")[-1].as_py():
            break
    return _tail(tail, context)


def _decode(batch: pa.RecordBatch, to_global: Ints | None, boundary: Boundary) -> tuple[Ints, Longs]:
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


def _local_to_global(path: str) -> Ints | None:
    """Global id of each local word, then `SPECIAL` .. `OOV` so that markers map to themselves."""
    words = _words_path(path)
    if not storage.exists(words):
        return None
    hashes = _load(words)
    table = _load(storage.join(posixpath.dirname(path), VOCABULARY))
    ids = np.full(len(hashes) + 4, OOV, np.int32)
    if len(table):
        place = np.minimum(np.searchsorted(table["hash"], hashes), len(table) - 1)
        ids[: len(hashes)] = np.where(table["hash"][place] == hashes, table["id"][place], OOV)
    ids[len(hashes) :] = [SPECIAL, SENTENCE, PARAGRAPH, OOV]
    return ids


def _words_path(shard_path: str) -> str:
    return shard_path.removesuffix(".arrow") + ".words.npy"


def _save(path: str, array: npt.NDArray[Any]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    storage.write_bytes(path, buffer.getvalue())


def _load(path: str) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = np.load(io.BytesIO(storage.read_bytes(path)), allow_pickle=False)
    return array
