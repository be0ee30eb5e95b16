"""Text as a masked language model is given it: documents cut into sequences ``[CLS] piece [SEP]``, and samples of them.

A document of n tokens (special tokens not counted) is cut at the multiples of L - 2, where L is the length of a
sequence. Its last piece is shorter; below `SHORTEST_REMAINDER` tokens it is dropped, unless it is the whole document,
of which `SHORTEST_DOCUMENT` tokens suffice. A sequence is named by its document's key and the position in the document
of its first token, so its name does not depend on how the corpus is partitioned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wals_spark.errors import InputError
from wals_spark.splitmix64 import hash_words

SHORTEST_REMAINDER = 16
"""Tokens that the rest of a document must have to be a sequence of its own."""
SHORTEST_DOCUMENT = 2
"""Tokens that a document must have: one to hide, one to hide it from."""
_DRAW = 0x73616D706C65
_SPLIT = 0x73706C6974
"""Keep the hashes of the sample and of the split of documents apart."""


@dataclass(frozen=True)
class TextSequences:
    """Pieces of documents, each the body of a sequence.

    Attributes
    ----------
    tokens : int32 array of shape (t,)
        Token ids of all pieces, without ``[CLS]`` and ``[SEP]``.
    offsets : int64 array of shape (n + 1,)
        Piece i is ``tokens[offsets[i]:offsets[i + 1]]``.
    document : uint64 array of shape (n,)
        `wals_spark.token_shards.document_key` of its document.
    start : int64 array of shape (n,)
        Position in its document of its first token.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    document: np.ndarray
    start: np.ndarray

    def __len__(self) -> int:
        return len(self.document)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each piece, int64 (n,)."""
        return np.diff(self.offsets)

    def piece(self, index: int) -> np.ndarray:
        """The tokens of a piece, int32."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def take(self, index: np.ndarray) -> TextSequences:
        """The pieces of an index or of a mask, in its order."""
        chosen = np.flatnonzero(index) if index.dtype == bool else index
        return _gather(
            self.tokens, self.offsets[chosen], self.lengths[chosen], self.document[chosen], self.start[chosen]
        )


def no_sequences() -> TextSequences:
    """A `TextSequences` without pieces."""
    return TextSequences(np.empty(0, np.int32), np.zeros(1, np.int64), np.empty(0, np.uint64), np.empty(0, np.int64))


def concatenate_sequences(parts: Sequence[TextSequences]) -> TextSequences:
    """The pieces of several parts, in their order."""
    parts = parts or [no_sequences()]
    offsets = np.concatenate([[0], np.cumsum(np.concatenate([part.lengths for part in parts]))]).astype(np.int64)
    columns = (np.concatenate([getattr(part, name) for part in parts]) for name in ("tokens", "document", "start"))
    tokens, document, start = columns
    return TextSequences(tokens, offsets, document, start)


def cut_documents(
    tokens: np.ndarray,
    offsets: np.ndarray,
    document: np.ndarray,
    length: int,
    *,
    first: int = 0,
    unknown: int | None = None,
) -> TextSequences:
    """Cut documents into pieces of at most ``length - 2`` tokens.

    Parameters
    ----------
    tokens : int32 array of shape (t,)
        Ids of all documents, as `wals_spark.token_shards` holds them: a special token in the text is negative.
    offsets : int64 array of shape (documents + 1,)
        Document d is ``tokens[offsets[d]:offsets[d + 1]]``.
    document : uint64 array of shape (documents,)
        Keys of the documents.
    length : int
        L, the two special tokens of a sequence included.
    first : int
        Position in its document of ``tokens[0]``; document 0 is a later part of a long one where this is not 0.
    unknown : int or None
        The id that stands in for negative ones, such as that of ``[UNK]``; None drops them before documents are cut.

    Returns
    -------
    TextSequences

    Raises
    ------
    InputError
        `length` is below 4.
    """
    if length < SHORTEST_DOCUMENT + 2:
        raise InputError(f"sequence length {length}: expected at least {SHORTEST_DOCUMENT + 2}, two of them special")
    negative = tokens < 0
    if negative.any():
        if unknown is None:
            offsets = np.concatenate([[0], np.cumsum(~negative)])[offsets]
            tokens = tokens[~negative]
        else:
            tokens = np.where(negative, np.int32(unknown), tokens)
    body = length - 2
    begins = np.zeros(len(document), np.int64)
    begins[:1] = first
    pieces = _pieces(np.diff(offsets), begins, body)
    owner = np.repeat(np.arange(len(document)), pieces)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    low = offsets[owner] + number * body
    sizes = np.minimum(offsets[owner + 1] - low, body)
    return _gather(tokens, low, sizes, document[owner], begins[owner] + number * body)


def _pieces(sizes: np.ndarray, begins: np.ndarray, body: int) -> np.ndarray:
    """Pieces of documents (or of later parts of documents, which begin after position 0) of some sizes, int64."""
    pieces = -(-sizes // body)
    remainder = sizes - (pieces - 1) * body
    is_whole = (pieces == 1) & (begins == 0)
    least = np.where(is_whole, SHORTEST_DOCUMENT, min(SHORTEST_REMAINDER, body))
    return pieces - ((pieces > 0) & (remainder < least))


def _gather(
    tokens: np.ndarray, low: np.ndarray, sizes: np.ndarray, document: np.ndarray, start: np.ndarray
) -> TextSequences:
    """The pieces ``tokens[low:low + size]``."""
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    place = np.repeat(low - offsets[:-1], sizes) + np.arange(offsets[-1])
    return TextSequences(
        tokens[place].astype(np.int32, copy=False), offsets, document.astype(np.uint64), start.astype(np.int64)
    )


def sampling_hash(sequences: TextSequences, seed: int) -> np.ndarray:
    """A hash of (seed, document, start) of every sequence, uint64 (n,); a sample is those with the smallest."""
    return hash_words(_DRAW, seed, sequences.document, sequences.start.astype(np.uint64))


def smallest_sequences(sequences: TextSequences, count: int, seed: int) -> TextSequences:
    """The `count` different sequences with the smallest `sampling_hash`, in its order.

    Of several sequences with the same tokens the one with the smallest hash is kept. Applied to parts of a corpus and
    then to the results together, it gives what it gives on the whole corpus.
    """
    order = np.lexsort((sequences.start, sequences.document, sampling_hash(sequences, seed)))
    kept: list[int] = []
    seen: set[bytes] = set()
    for index in order.tolist():
        if len(kept) == count:
            break
        content = sequences.piece(index).tobytes()
        if content not in seen:
            seen.add(content)
            kept.append(index)
    return sequences.take(np.array(kept, np.int64))


def validation_documents(document: np.ndarray, fraction: float) -> np.ndarray:
    """Whether each sequence's document is held out of the fit: its hash is below `fraction` of 2^64.

    At least one document is held out where there are two and `fraction` is above 0, that with the smallest hash, and
    at least one is not, that with the largest.

    Parameters
    ----------
    document : uint64 array of shape (n,)
        Key of the document of each sequence.
    fraction : float
        Share of documents to hold out, from 0 to below 1.

    Returns
    -------
    bool array of shape (n,)
    """
    distinct, place = np.unique(document, return_inverse=True)
    hashed = hash_words(_SPLIT, distinct)
    held = hashed < np.uint64(min(fraction, 1 - 2**-53) * 2.0**64)
    if fraction > 0 and len(distinct) > 1:
        held[np.argmin(hashed)] = True
        held[np.argmax(hashed)] = False
    return held[place]
