"""Bytes -> text that later stages can rely on: valid UTF-8, normalised, not empty.

All of it works on the buffer of a batch; single documents become Python strings only where their bytes require it.
"""

from __future__ import annotations

import unicodedata
from collections import Counter

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from wals_spark.config import CorpusConfig
from wals_spark.corpus.document_batch import Bytes, DocumentBatch
from wals_spark.errors import InputError

_NEWLINE, _SPACE = 0x0A, 0x20
SPACES = "\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u200b\u202f\u205f\u3000"
"""Become U+0020: every Zs, and U+200B, which marks a word boundary without showing it."""
LINE_BREAKS = "\u0085\u2028\u2029"
"""Become U+000A, as do U+000B and U+000C, and U+000D with or without a U+000A after it."""
REMOVED = "".join(map(chr, [*range(0x80, 0x85), *range(0x86, 0xA0), 0xAD, 0x2060, 0xFEFF]))
"""Vanish, as do U+0000 to U+0008, U+000E to U+001F and U+007F: controls, soft hyphen, word joiner, BOM."""


def clean_batch(batch: DocumentBatch, config: CorpusConfig, counts: Counter[str]) -> DocumentBatch:
    """Decode, normalise, drop what is empty; `counts` gets what was dropped or changed.

    Raises
    ------
    InputError
        Bytes that are not UTF-8 where ``corpus.encoding_errors`` is refuse.
    """
    counts["documents_read"] += len(batch)
    batch = decode(batch, config, counts)
    if config.normalize:
        batch = normalize(batch, counts)
    return drop_empty(batch, counts)


def decode(batch: DocumentBatch, config: CorpusConfig, counts: Counter[str]) -> DocumentBatch:
    """Refuse, replace or skip documents that are not UTF-8."""
    try:
        batch.arrow_text().validate(full=True)
        return batch
    except pa.ArrowInvalid:
        pass
    kept = np.ones(len(batch), bool)
    changed: dict[int, bytes] = {}
    for index in range(len(batch)):
        text = batch.text(index)
        try:
            text.decode("utf-8")
        except UnicodeDecodeError as error:
            if config.encoding_errors == "refuse":
                hint = "; it looks like UTF-16" if text[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
                raise InputError(
                    f"{batch.source}: document {batch.ids[index]!r} is not UTF-8 at its byte {error.start} "
                    f"({text[error.start : error.start + 4].hex(' ')}){hint}; "
                    "convert it, or set corpus.encoding_errors to replace or skip"
                ) from None
            if config.encoding_errors == "skip":
                kept[index] = False
            else:
                changed[index] = text.decode("utf-8", "replace").encode()
    counts["not_utf8_skipped"] += int(np.count_nonzero(~kept))
    counts["not_utf8_replaced"] += len(changed)
    return batch.replace_texts(changed).select(kept)


def normalize(batch: DocumentBatch, counts: Counter[str]) -> DocumentBatch:
    """NFC; line breaks as U+000A, spaces as U+0020, control characters removed (see the module's constants)."""
    data, offsets, touched = _normalize_characters(batch.data, batch.offsets)
    counts["characters_normalized"] += touched
    batch = DocumentBatch(batch.ids, data, offsets, batch.source)
    changed: dict[int, bytes] = {}
    for index in _beyond_latin1(batch).tolist():
        text = batch.text(index).decode("utf-8")
        if not unicodedata.is_normalized("NFC", text):
            changed[index] = unicodedata.normalize("NFC", text).encode()
    counts["documents_composed"] += len(changed)
    return batch.replace_texts(changed)


def _normalize_characters(data: Bytes, offsets: npt.NDArray[np.int64]) -> tuple[Bytes, npt.NDArray[np.int64], int]:
    """Map spaces and line breaks, remove controls; returns data, offsets and the number of characters touched."""
    out = data
    dropped: list[npt.NDArray[np.int64]] = []
    touched = 0

    def write(at: npt.NDArray[np.int64], length: int, byte: int | None) -> None:
        nonlocal out, touched
        if not len(at):
            return
        if out is data:
            out = data.copy()
        first = 0
        if byte is not None:
            out[at] = byte
            first = 1
        dropped.extend(at + extra for extra in range(first, length))
        touched += len(at)

    # One pass of a C loop finds all bytes that may begin something to change.
    suspects = np.flatnonzero(np.frombuffer(data.tobytes().translate(_SUSPECT), bool))
    values = data[suspects]
    low = suspects[(values < _SPACE) | (values == 0x7F)]
    if len(low):
        kind = data[low]
        returns = low[kind == 0x0D]
        following = data[np.minimum(returns + 1, len(data) - 1)] == _NEWLINE
        # A line feed that begins the next document does not belong to this return.
        following &= ~np.isin(returns + 1, offsets)
        write(returns[following], 1, None)
        write(returns[~following], 1, _NEWLINE)
        write(low[(kind == 0x0B) | (kind == 0x0C)], 1, _NEWLINE)
        write(low[(kind != 0x0D) & (kind != 0x0B) & (kind != 0x0C)], 1, None)
    for lead, table in _TABLES.items():
        starts = suspects[values == lead]
        for tail, byte in table:
            at = starts
            for distance, value in enumerate(tail, start=1):
                at = at[at + distance < len(data)]
                at = at[data[at + distance] == value]
            write(at, 1 + len(tail), byte)
    if not dropped:
        return out, offsets, touched
    gone = np.sort(np.concatenate(dropped))
    kept = np.ones(len(out), bool)
    kept[gone] = False
    return out[kept], offsets - np.searchsorted(gone, offsets), touched


def _tables() -> dict[int, list[tuple[bytes, int | None]]]:
    """First byte -> (the other bytes, what the character becomes)."""
    tables: dict[int, list[tuple[bytes, int | None]]] = {}
    for characters, byte in ((SPACES, _SPACE), (LINE_BREAKS, _NEWLINE), (REMOVED, None)):
        for character in characters:
            code = character.encode()
            tables.setdefault(code[0], []).append((code[1:], byte))
    return tables


_TABLES = _tables()
_SUSPECT = bytes(
    code in _TABLES or code == 0x7F or (code < _SPACE and code not in (0x09, _NEWLINE)) for code in range(256)
)


def _beyond_latin1(batch: DocumentBatch) -> npt.NDArray[np.int64]:
    """Documents with a character of U+0300 or above: all others are in NFC as they are."""
    high = np.flatnonzero(batch.data >= 0xCC)
    return np.unique(np.searchsorted(batch.offsets, high, side="right") - 1)


def drop_empty(batch: DocumentBatch, counts: Counter[str]) -> DocumentBatch:
    """Drop documents that hold white space only."""
    lengths = np.diff(batch.offsets)
    kept = lengths > 0
    suspects = np.flatnonzero(kept)
    first = batch.data[batch.offsets[suspects]]
    for index in suspects[(first <= _SPACE) | (first >= 0x80)].tolist():
        kept[index] = bool(batch.text(index).decode("utf-8").strip())
    counts["empty"] += int(np.count_nonzero(~kept))
    return batch.select(kept)


def filter_length(batch: DocumentBatch, config: CorpusConfig, counts: Counter[str]) -> DocumentBatch:
    """Drop documents with too few or too many characters."""
    if not len(batch) or (config.min_characters is None and config.max_characters is None):
        return batch
    starts_character = (batch.data & 0xC0) != 0x80
    characters = np.add.reduceat(starts_character, batch.offsets[:-1], dtype=np.int64)
    short = characters < (config.min_characters or 0)
    long = characters > config.max_characters if config.max_characters is not None else np.zeros(len(batch), bool)
    counts["too_short"] += int(np.count_nonzero(short))
    counts["too_long"] += int(np.count_nonzero(long))
    return batch.select(~(short | long))
