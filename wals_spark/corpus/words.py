r"""Words of text as integers: a byte kernel for patterns of one character class, `re` for all others.

The meaning is that of `word_rules`: ``re.finditer(pattern, case(text))``. Where the
pattern is one class repeated, such as ``[a-z]+`` or ``[^\W\d_]+``, a word is a maximal run of class
characters, and the kernel finds it in the UTF-8 bytes, folds its case and looks it up in a hash table of
byte strings, without a Python object per word. Local ids are given in the order of first appearance.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from wals_spark.compiled import compiled
from wals_spark.corpus.byte_strings import FNV_PRIME, FULL, ByteStringDictionary, find_string
from wals_spark.corpus.document_batch import Bytes, DocumentBatch, Ints, Longs, TokenizedDocuments
from wals_spark.corpus.sentences import CLOSER, FULL_STOP, NEWLINE, SPACE, TERMINATOR, punctuation_flags
from wals_spark.corpus.utf8 import decode_utf8
from wals_spark.corpus.word_rules import CASES, words_and_breaks

_ONE_CLASS = re.compile(r"(\\[wWdDsS]|\[\^?(?:\\[^xuUN0-9]|[^\\\]\[])+\])\+")
_CODES = 0x110000
_CASED_BELOW = 0x20000
_SIGMA = 0x03A3

SEPARATOR, PLAIN, MAPPED, RULES = 0, 1, 2, 3
"""Kinds of code points: no part of a word; part of one as it is; part of one as `CharacterTables.mapped` says; left to
`word_rules`, because its case depends on its neighbours."""


class CharacterTables(NamedTuple):
    """What the kernel knows of a pattern and a case.

    Attributes
    ----------
    kinds : uint8 array of shape (0x110000,)
        `SEPARATOR`, `PLAIN`, `MAPPED` or `RULES` per code point.
    ascii : uint8 array of shape (128,)
        The byte an ASCII word character becomes; 0 for no word character.
    fast : uint8 array of shape (128,)
        `ascii` without the characters that have a flag in `punctuation`.
    codes : int32 array, sorted
        The code points that are mapped.
    bounds : int64 array of shape (codes + 1,)
    mapped : uint8 array
        What ``codes[i]`` becomes: ``mapped[bounds[i]:bounds[i + 1]]``, with 0 where a word ends.
    punctuation : uint8 array of shape (0x110000,)
        Flags of what ends sentences and paragraphs.
    """

    kinds: Bytes
    ascii: Bytes
    fast: Bytes
    codes: Ints
    bounds: Longs
    mapped: Bytes
    punctuation: Bytes


@lru_cache(maxsize=4)
def character_tables(pattern: str, case: str) -> CharacterTables | None:
    """The tables of a pattern of one character class; None for any other pattern."""
    match = _ONE_CLASS.fullmatch(pattern)
    if match is None:
        return None
    everything = np.concatenate([np.arange(0xD800), np.arange(0xE000, _CODES)]).astype("<u4")
    text = everything.tobytes().decode("utf-32-le")
    member = np.zeros(_CODES, bool)
    for run in re.finditer(pattern, text):
        member[everything[run.start() : run.end()]] = True
    kinds = np.where(member, PLAIN, SEPARATOR).astype(np.uint8)
    mapped: dict[int, bytes] = {}
    fold = CASES[case]
    for code in range(_CASED_BELOW):
        character = chr(code)
        if 0xD800 <= code < 0xE000 or (folded := fold(character)) == character:
            continue
        inside = [bool(member[ord(part)]) for part in folded]
        if any(inside):
            mapped[code] = b"".join(part.encode() if keep else b"\0" for part, keep in zip(folded, inside, strict=True))
            kinds[code] = MAPPED
        else:
            kinds[code] = SEPARATOR
    if case == "lower" and (member[0x03C2] or member[0x03C3]):
        kinds[_SIGMA] = RULES
    ascii_bytes = np.zeros(128, np.uint8)
    for code in range(1, 128):
        if kinds[code] == PLAIN:
            ascii_bytes[code] = code
        elif kinds[code] == MAPPED:
            ascii_bytes[code] = mapped[code][0]
    flags = punctuation_flags()
    codes = sorted(mapped)
    lengths = [0, *(len(mapped[code]) for code in codes)]
    return CharacterTables(
        kinds,
        ascii_bytes,
        np.where(flags[:128] == 0, ascii_bytes, 0).astype(np.uint8),
        np.array(codes, np.int32),
        np.cumsum(lengths, dtype=np.int64),
        np.frombuffer(b"".join(mapped[code] for code in codes) or b"\0", np.uint8),
        flags,
    )


class WordArrays(NamedTuple):
    """What the kernel fills: see `TokenizedDocuments`; longer than what is filled in the end.

    Attributes
    ----------
    tokens : int32 array
    ends : int64 array of shape (documents + 1,)
    breaks : int32 array
    break_ends : int64 array of shape (documents + 1,)
    """

    tokens: Ints
    ends: Longs
    breaks: Ints
    break_ends: Longs


@compiled()
def _find_words(data, offsets, first, characters, table, count, out):  # type: ignore[no-untyped-def]
    """Find the words of documents ``first ..``; returns the first one not done, the number of words, and why.

    Parameters
    ----------
    data : uint8 array
    offsets : int64 array of shape (documents + 1,)
    first : int
    characters : CharacterTables
    table : StringTable
        Of the words known; new ones are entered.
    count : int
        Number of words known.
    out : WordArrays
        Filled from ``ends[first]`` and ``break_ends[first]`` on.

    Returns
    -------
    int, int, int
        The last one says why a document is not done: it needs `RULES`, or the dictionary is `FULL`; the document
        is begun again then.
    """
    kinds, ascii_bytes, fast = characters.kinds, characters.ascii, characters.fast
    codes, bounds, mapped, flags = characters.codes, characters.bounds, characters.mapped, characters.punctuation
    slots, hashes, starts, heap = table.slots, table.hashes, table.starts, table.heap
    basis, mask = table.basis, table.mask
    tokens, ends, breaks, break_ends = out.tokens, out.ends, out.breaks, out.break_ends
    prime = np.uint64(FNV_PRIME)
    filled, broken = ends[first], break_ends[first]
    for document in range(first, len(offsets) - 1):
        document_start = filled
        position, stop = offsets[document], offsets[document + 1]
        used = starts[count]
        length = 0
        hashed = basis
        terminated = sentence = paragraph = False
        rest = rest_stop = 0
        while True:
            flag = np.uint8(0)
            if rest < rest_stop:
                # What is left of a mapped character.
                value = mapped[rest]
                rest += 1
                if value:
                    if used + length + 1 > len(heap):
                        return document, count, FULL
                    heap[used + length] = value
                    hashed = (hashed ^ np.uint64(value)) * prime
                    length += 1
                    continue
            else:
                # Word characters of ASCII that say nothing about sentences: nearly all there are.
                run = position
                limit = min(stop, position + len(heap) - used - length)
                byte = np.uint8(0)
                while position < limit:
                    byte = data[position]
                    if byte >= 128:
                        break
                    value = fast[byte]
                    if value == 0:
                        break
                    heap[used + length] = value
                    hashed = (hashed ^ np.uint64(value)) * prime
                    length += 1
                    position += 1
                if position > run:
                    terminated = False
                if position < stop:
                    if position == limit:
                        return document, count, FULL
                    if byte < 128:
                        flag = flags[byte]
                        value = ascii_bytes[byte]
                        position += 1
                        if value:
                            if used + length + 1 > len(heap):
                                return document, count, FULL
                            heap[used + length] = value
                            hashed = (hashed ^ np.uint64(value)) * prime
                            length += 1
                            terminated = (flag & TERMINATOR) != 0 or (terminated and (flag & CLOSER) != 0)
                            continue
                    else:
                        code, width = decode_utf8(data, position)
                        kind = kinds[code]
                        flag = flags[code]
                        if kind == RULES:
                            return document, count, RULES
                        if kind == MAPPED:
                            place = np.searchsorted(codes, code)
                            rest, rest_stop = bounds[place], bounds[place + 1]
                            position += width
                            terminated = False
                            continue
                        if kind == PLAIN:
                            if used + length + width > len(heap):
                                return document, count, FULL
                            for _ in range(width):
                                value = data[position]
                                heap[used + length] = value
                                hashed = (hashed ^ np.uint64(value)) * prime
                                length += 1
                                position += 1
                            terminated = (flag & TERMINATOR) != 0 or (terminated and (flag & CLOSER) != 0)
                            continue
                        position += width
                elif length == 0:
                    break
            # No word character: a word may end here.
            if length:
                key = hashed & mask
                word = find_string(key, used, length, slots, hashes, starts, heap)
                if word < 0:
                    if count + 2 > len(starts) or 2 * count + 2 > len(slots):
                        return document, count, FULL
                    slots[~word] = count
                    hashes[count] = key
                    used += length
                    starts[count + 1] = used
                    word = count
                    count += 1
                if paragraph or sentence:
                    if filled > document_start:
                        breaks[broken] = 2 * (filled - 1 - document_start) + paragraph
                        broken += 1
                    sentence = paragraph = False
                tokens[filled] = word
                filled += 1
                length = 0
                hashed = basis
            if flag == 0:
                terminated = False
            elif flag & SPACE:
                sentence |= terminated
                paragraph |= (flag & NEWLINE) != 0
                terminated = False
            elif flag & FULL_STOP:
                sentence = True
                terminated = False
            elif flag & TERMINATOR:
                terminated = True
        ends[document + 1] = filled
        break_ends[document + 1] = broken
    return len(offsets) - 1, count, 0


class WordEncoder(ByteStringDictionary):
    """The words of batches as local ids.

    Parameters
    ----------
    pattern, case : str
        As in the configuration.
    seed, hash_bits : int
        See `ByteStringDictionary`.
    """

    def __init__(self, pattern: str, case: str, seed: int = 0, hash_bits: int = 64) -> None:
        super().__init__(seed, hash_bits)
        self.pattern, self.case = re.compile(pattern), case
        self.characters = character_tables(pattern, case)

    def encode(self, batch: DocumentBatch) -> TokenizedDocuments:
        """The words of documents as local ids; `batch` holds valid UTF-8."""
        documents = len(batch)
        capacity = int(batch.offsets[-1]) + 1
        ends, break_ends = np.zeros(documents + 1, np.int64), np.zeros(documents + 1, np.int64)
        out = WordArrays(np.empty(capacity, np.int32), ends, np.empty(capacity, np.int32), break_ends)
        document = 0
        while document < documents:
            if self.characters is not None:
                document, self.size, state = _find_words(
                    batch.data, batch.offsets, document, self.characters, self.table, self.size, out
                )
                if state == FULL:
                    self.grow()
                if state != RULES:
                    continue
            self._encode_by_rules(batch.text(document).decode(), document, out)
            document += 1
        filled, broken = int(out.ends[-1]), int(out.break_ends[-1])
        return TokenizedDocuments(out.tokens[:filled].copy(), out.ends, out.breaks[:broken].copy(), out.break_ends)

    def _encode_by_rules(self, text: str, document: int, out: WordArrays) -> None:
        """Fill in the words of a document that the kernel leaves to `word_rules`."""
        found, ended = self._by_rules(text)
        filled, broken = int(out.ends[document]), int(out.break_ends[document])
        out.tokens[filled : filled + len(found)] = found
        out.breaks[broken : broken + len(ended)] = ended
        out.ends[document + 1], out.break_ends[document + 1] = filled + len(found), broken + len(ended)

    def _by_rules(self, text: str) -> tuple[Ints, Ints]:
        words, breaks = words_and_breaks(text, self.pattern, self.case)
        local: dict[str, int] = {}
        places = np.fromiter((local.setdefault(word, len(local)) for word in words), np.int64, len(words))
        return self.intern([word.encode() for word in local])[places], np.array(breaks, np.int32)
