r"""Words of text as integers: a byte kernel for patterns of one character class, `re` for all others.

The meaning is that of the reference (`reference.words`): ``re.finditer(pattern, case(text))``. Where the
pattern is one class repeated, such as ``[a-z]+`` or ``[^\\W\\d_]+``, a word is a maximal run of class
characters, and the kernel finds it in the UTF-8 bytes, folds its case and looks it up in a hash table of
byte strings, without a Python object per word. Local ids are given in the order of first appearance.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from wals_spark.compiled import compiled
from wals_spark.corpus.document_batch import Bytes, DocumentBatch, Longs
from wals_spark.corpus.word_rules import CASES, words_and_breaks
from wals_spark.splitmix64 import GOLDEN_GAMMA

Ints = npt.NDArray[np.int32]

_ONE_CLASS = re.compile(r"(\\[wWdDsS]|\[\^?(?:\\[^xuUN0-9]|[^\\\]\[])+\])\+")
_CODES = 0x110000
_CASED_BELOW = 0x20000
_SIGMA = 0x03A3
FNV_BASIS = 14695981039346656037
FNV_PRIME = 1099511628211

SEPARATOR, PLAIN, MAPPED, RULES = 0, 1, 2, 3
"""What a code point is to the kernel: no part of a word; part of one as it is; what `map_bytes` says; not for the
kernel, because its case depends on its neighbours."""
FULL = 4
TERMINATOR, CLOSER, SPACE, NEWLINE, FULL_STOP = 1, 2, 4, 8, 16


@dataclass(frozen=True)
class CharacterTables:
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


def punctuation_flags() -> Bytes:
    """Flags of the characters that end sentences and paragraphs, as in `reference.SENTENCE_END`."""
    flags = np.zeros(_CODES, np.uint8)
    for characters, flag in (
        (".!?\u2026", TERMINATOR),
        ("\"')]}\u2019\u201d\u00bb", CLOSER),
        (" \t\r\v\f", SPACE),
        ("\n", SPACE | NEWLINE),
        ("\u3002\uff01\uff1f", FULL_STOP),
    ):
        for character in characters:
            flags[ord(character)] = flag
    return flags


@compiled(inline="always")
def _slot(hashed, size):  # type: ignore[no-untyped-def]
    mixed = hashed ^ (hashed >> np.uint64(32))
    return np.int64(mixed & np.uint64(size - 1))


@compiled()
def _fill_slots(slots, hashes):  # type: ignore[no-untyped-def]
    """Enter words into an empty table by their hashes."""
    for word in range(len(hashes)):
        at = _slot(hashes[word], len(slots))
        while slots[at] >= 0:
            at = (at + 1) & (len(slots) - 1)
        slots[at] = word


@compiled()
def _find(key, used, length, slots, hashes, starts, heap):  # type: ignore[no-untyped-def]
    """The word with the bytes ``heap[used:used + length]``, or ~slot where it is to be entered."""
    at = _slot(key, len(slots))
    while slots[at] >= 0:
        word = slots[at]
        origin = starts[word]
        if hashes[word] == key and starts[word + 1] - origin == length:
            same = 0
            while same < length and heap[origin + same] == heap[used + same]:
                same += 1
            if same == length:
                return np.int64(word)
        at = (at + 1) & (len(slots) - 1)
    return ~at


@compiled()
def _scan(  # type: ignore[no-untyped-def]
    data, offsets, first, kinds, ascii_bytes, fast, codes, bounds, mapped, flags, basis, mask,
    slots, hashes, starts, heap, count, tokens, ends, breaks, break_ends,
):  # fmt: skip
    """Find the words of documents ``first ..``; returns the first one not done, the number of words, and why.

    `tokens` and `breaks` fill from ``ends[first]`` and ``break_ends[first]`` on. A document is not done where
    it needs `RULES`, or where the dictionary is `FULL`; it is begun again then.
    """
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
                room = min(stop, position + len(heap) - used - length)
                byte = np.uint8(0)
                while position < room:
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
                    if position == room:
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
                        code, width = _decode(data, position)
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
                word = _find(key, used, length, slots, hashes, starts, heap)
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


@compiled(inline="always")
def _decode(data, at):  # type: ignore[no-untyped-def]
    """Code point and width of a character beyond ASCII, in valid UTF-8."""
    lead = np.int64(data[at])
    code = np.int64(data[at + 1] & 0x3F)
    if lead < 0xE0:
        return (lead & 0x1F) << 6 | code, 2
    code = code << 6 | np.int64(data[at + 2] & 0x3F)
    if lead < 0xF0:
        return (lead & 0x0F) << 12 | code, 3
    return (lead & 0x07) << 18 | code << 6 | np.int64(data[at + 3] & 0x3F), 4


@compiled()
def _intern(data, offsets, first, basis, mask, slots, hashes, starts, heap, count, tokens):  # type: ignore[no-untyped-def]
    """Look up the byte strings ``data[offsets[i]:offsets[i + 1]]`` from `first` on; returns as `_scan` does."""
    prime = np.uint64(FNV_PRIME)
    for index in range(first, len(offsets) - 1):
        used, length = starts[count], offsets[index + 1] - offsets[index]
        if used + length > len(heap):
            return index, count, FULL
        hashed = basis
        for step in range(length):
            value = data[offsets[index] + step]
            heap[used + step] = value
            hashed = (hashed ^ np.uint64(value)) * prime
        key = hashed & mask
        word = _find(key, used, length, slots, hashes, starts, heap)
        if word < 0:
            if count + 2 > len(starts) or 2 * count + 2 > len(slots):
                return index, count, FULL
            slots[~word] = count
            hashes[count] = key
            starts[count + 1] = used + length
            word = count
            count += 1
        tokens[index] = word
    return len(offsets) - 1, count, 0


def sentence_ends(data: Bytes, offsets: Longs, flags: Bytes) -> Longs:
    """Byte positions where `reference.SENTENCE_END` matches end, in documents of valid UTF-8."""
    found = np.empty(len(data), np.int64)
    return found[: _sentence_ends(data, offsets, flags, found)].copy()


@compiled()
def _sentence_ends(data, offsets, flags, found):  # type: ignore[no-untyped-def]
    count = 0
    for document in range(len(offsets) - 1):
        position = offsets[document]
        terminated = False
        while position < offsets[document + 1]:
            if data[position] < 128:
                code, width = np.int64(data[position]), 1
            else:
                code, width = _decode(data, position)
            flag = flags[code]
            if flag & (SPACE | FULL_STOP):
                if terminated or flag & FULL_STOP:
                    found[count] = position
                    count += 1
                terminated = False
            elif flag & TERMINATOR:
                terminated = True
            elif not flag & CLOSER:
                terminated = False
            position += width
    return count


@compiled()
def _count_tokens(tokens, offsets, document, counts, document_counts, last):  # type: ignore[no-untyped-def]
    """Add occurrences, and documents with an occurrence; `document` numbers the first one."""
    for index in range(len(offsets) - 1):
        for position in range(offsets[index], offsets[index + 1]):
            token = tokens[position]
            if token >= 0:
                counts[token] += 1
                if last[token] != document + index:
                    last[token] = document + index
                    document_counts[token] += 1


class TokenCounter:
    """Counts of tokens, and of the documents that hold them; ids may grow."""

    def __init__(self, size: int = 1 << 16) -> None:
        self.counts = np.zeros(size, np.int64)
        self.document_counts = np.zeros(size, np.int64)
        self._last = np.full(size, -1, np.int64)
        self._documents = 0

    def add(self, tokens: Ints, offsets: Longs, size: int) -> None:
        """Count documents ``tokens[offsets[d]:offsets[d + 1]]`` with ids below `size`; negative ids are passed over."""
        if size > len(self.counts):
            wider = max(size, 2 * len(self.counts))
            self.counts = np.concatenate([self.counts, np.zeros(wider - len(self.counts), np.int64)])
            self.document_counts = np.concatenate(
                [self.document_counts, np.zeros(wider - len(self.document_counts), np.int64)]
            )
            self._last = np.concatenate([self._last, np.full(wider - len(self._last), -1, np.int64)])
        _count_tokens(tokens, offsets, self._documents, self.counts, self.document_counts, self._last)
        self._documents += len(offsets) - 1


@dataclass(frozen=True)
class EncodedDocuments:
    """Documents as local ids, with the ends of their paragraphs and sentences as `encoded` codes them."""

    tokens: Ints
    offsets: Longs
    breaks: Ints
    break_offsets: Longs


class ByteStringDictionary:
    """A growing dictionary of byte strings: local ids in the order of first appearance.

    Parameters
    ----------
    seed : int
        Of the hash. Another one is tried where two words share a hash.
    hash_bits : int
        Fewer than 64 make collisions likely: for tests.
    """

    def __init__(self, seed: int = 0, hash_bits: int = 64) -> None:
        self._basis = np.uint64(FNV_BASIS ^ (seed * GOLDEN_GAMMA & (1 << 64) - 1))
        self._mask = np.uint64((1 << hash_bits) - 1)
        self._slots = np.full(1 << 16, -1, np.int32)
        self._hashes = np.zeros(1 << 15, np.uint64)
        self._starts = np.zeros((1 << 15) + 1, np.int64)
        self._heap = np.zeros(1 << 18, np.uint8)
        self.size = 0

    @property
    def hashes(self) -> npt.NDArray[np.uint64]:
        """The hash of each string, by local id."""
        return self._hashes[: self.size]

    @property
    def starts(self) -> Longs:
        """String i is ``heap[starts[i]:starts[i + 1]]``."""
        return self._starts[: self.size + 1]

    @property
    def heap(self) -> Bytes:
        """The strings' bytes."""
        return self._heap[: int(self._starts[self.size])]

    def words(self, first: int = 0) -> list[str]:
        """The strings as text, by local id, from `first` on."""
        starts = self.starts[first:].tolist()
        text = self.heap[starts[0] :].tobytes()
        return [text[low - starts[0] : high - starts[0]].decode() for low, high in itertools.pairwise(starts)]

    def intern(self, strings: list[bytes]) -> Ints:
        """Local ids of byte strings."""
        offsets = np.zeros(len(strings) + 1, np.int64)
        np.cumsum([len(string) for string in strings], out=offsets[1:])
        data = np.frombuffer(b"".join(strings) or b"\0", np.uint8)
        ids = np.empty(len(strings), np.int32)
        done = 0
        while done < len(strings):
            done, self.size, state = _intern(
                data, offsets, done, self._basis, self._mask, self._slots, self._hashes, self._starts, self._heap,
                self.size, ids,
            )  # fmt: skip
            if state == FULL:
                self._grow()
        return ids

    def _grow(self) -> None:
        """Make room for twice as many strings."""
        self._hashes = np.concatenate([self._hashes, np.zeros_like(self._hashes)])
        self._starts = np.concatenate([self._starts, np.zeros(len(self._hashes) // 2, np.int64)])
        self._heap = np.concatenate([self._heap, np.zeros_like(self._heap)])
        self._slots = np.full(2 * len(self._slots), -1, np.int32)
        _fill_slots(self._slots, self.hashes)


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
        self.tables = character_tables(pattern, case)

    def encode(self, batch: DocumentBatch) -> EncodedDocuments:
        """The words of documents as local ids; `batch` holds valid UTF-8."""
        documents = len(batch)
        room = int(batch.offsets[-1]) + 1
        tokens, breaks = np.empty(room, np.int32), np.empty(room, np.int32)
        ends, break_ends = np.zeros(documents + 1, np.int64), np.zeros(documents + 1, np.int64)
        document = 0
        while document < documents:
            if self.tables is not None:
                document, state = self._scan(batch, document, tokens, ends, breaks, break_ends)
                if state == FULL:
                    self._grow()
                if state != RULES:
                    continue
            found, ended = self._by_rules(batch.text(document).decode())
            filled, broken = int(ends[document]), int(break_ends[document])
            tokens[filled : filled + len(found)] = found
            breaks[broken : broken + len(ended)] = ended
            document += 1
            ends[document], break_ends[document] = filled + len(found), broken + len(ended)
        return EncodedDocuments(tokens[: ends[-1]].copy(), ends, breaks[: break_ends[-1]].copy(), break_ends)

    def _scan(
        self, batch: DocumentBatch, document: int, tokens: Ints, ends: Longs, breaks: Ints, break_ends: Longs
    ) -> tuple[int, int]:
        assert self.tables is not None
        known = self.tables
        document, self.size, state = _scan(
            batch.data, batch.offsets, document, known.kinds, known.ascii, known.fast, known.codes, known.bounds,
            known.mapped, known.punctuation, self._basis, self._mask, self._slots, self._hashes, self._starts,
            self._heap, self.size, tokens, ends, breaks, break_ends,
        )  # fmt: skip
        return document, state

    def _by_rules(self, text: str) -> tuple[Ints, Ints]:
        words, breaks = words_and_breaks(text, self.pattern, self.case)
        local: dict[str, int] = {}
        places = np.fromiter((local.setdefault(word, len(local)) for word in words), np.int64, len(words))
        return self.intern([word.encode() for word in local])[places], np.array(breaks, np.int32)
