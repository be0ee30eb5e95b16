"""Documents in memory: ids beside one buffer of UTF-8 bytes, so that the work on text is on arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]


@dataclass(frozen=True)
class DocumentBatch:
    """Documents as one buffer of text.

    Attributes
    ----------
    ids : list of str
    data : uint8 array
        UTF-8 text of all documents (any bytes before `clean.decode` has seen them).
    offsets : int64 array of shape (documents + 1,)
        Document d is ``data[offsets[d]:offsets[d + 1]]``.
    source : str
        The file it came from, for messages.
    """

    ids: list[str]
    data: Bytes
    offsets: Longs
    source: str = ""

    @classmethod
    def from_texts(cls, ids: Sequence[str], texts: Iterable[bytes], source: str = "") -> DocumentBatch:
        """A batch of separate byte strings."""
        parts = list(texts)
        data = np.frombuffer(b"".join(parts), np.uint8)
        return cls(list(ids), data, _offsets(np.fromiter(map(len, parts), np.int64, len(parts))), source)

    @classmethod
    def from_arrow(cls, ids: list[str], texts: pa.Array, source: str = "") -> DocumentBatch:
        """A batch of an Arrow string or binary array; null counts as empty. No copy where there are no nulls."""
        if pa.types.is_dictionary(texts.type):
            texts = texts.dictionary_decode()
        if pa.types.is_string_view(texts.type):
            texts = texts.cast(pa.large_string())
        if texts.null_count:
            texts = texts.fill_null(b"" if _is_binary(texts.type) else "")
        wide = pa.types.is_large_string(texts.type) or pa.types.is_large_binary(texts.type)
        _, offsets_buffer, data_buffer = texts.buffers()
        kind = np.int64 if wide else np.int32
        width = np.dtype(kind).itemsize
        offsets = np.frombuffer(offsets_buffer, kind, len(texts) + 1, texts.offset * width).astype(np.int64)
        data = np.frombuffer(data_buffer, np.uint8) if data_buffer is not None else np.zeros(0, np.uint8)
        return cls(ids, data[offsets[0] : offsets[-1]], offsets - offsets[0], source)

    def __len__(self) -> int:
        return len(self.ids)

    def text(self, index: int) -> bytes:
        """The bytes of a document."""
        return self.data[self.offsets[index] : self.offsets[index + 1]].tobytes()

    def replace_texts(self, texts: dict[int, bytes]) -> DocumentBatch:
        """The batch with other texts for some documents."""
        if not texts:
            return self
        return DocumentBatch.from_texts(
            self.ids, [texts[d] if d in texts else self.text(d) for d in range(len(self))], self.source
        )

    def select(self, kept: npt.NDArray[np.bool_]) -> DocumentBatch:
        """The documents where `kept` is true."""
        if kept.all():
            return self
        lengths = np.diff(self.offsets)
        data = self.data[self.offsets[0] : self.offsets[-1]][np.repeat(kept, lengths)]
        ids = [name for name, keep in zip(self.ids, kept.tolist(), strict=True) if keep]
        return DocumentBatch(ids, data, _offsets(lengths[kept]), self.source)

    def arrow_text(self) -> pa.Array:
        """The texts as an Arrow array without copying; `large_string` where they exceed 2 GiB."""
        large = int(self.offsets[-1]) > np.iinfo(np.int32).max
        offsets = self.offsets if large else self.offsets.astype(np.int32)
        kind = pa.LargeStringArray if large else pa.StringArray
        return kind.from_buffers(len(self), pa.py_buffer(offsets), pa.py_buffer(self.data))


def _offsets(lengths: npt.NDArray[np.int64]) -> Longs:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


@dataclass(frozen=True)
class TokenizedDocuments:
    """Documents as token ids, with the ends of their paragraphs and sentences as `token_shards` codes them.

    Attributes
    ----------
    tokens : int32 array of shape (n,)
    offsets : int64 array of shape (documents + 1,)
        Document d is ``tokens[offsets[d]:offsets[d + 1]]``.
    breaks : int32 array of shape (b,)
    break_offsets : int64 array of shape (documents + 1,)
        The ends in document d are ``breaks[break_offsets[d]:break_offsets[d + 1]]``.
    """

    tokens: Ints
    offsets: Longs
    breaks: Ints
    break_offsets: Longs
