r"""Byte-level BPE (GPT-2, RoBERTa, BART and their kin) at the speed of a dictionary look-up.

Such a tokenizer cuts the text by

    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+

and applies its merges inside each piece, whatever stands around it. So a kernel cuts the UTF-8 bytes, every
distinct piece goes through the tokenizer itself once, and the rest is array look-up. The ids are those of
`Tokenizer.encode`; documents that hold an added token or a character that this Python's Unicode tables do not
know are left to it.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from wals_spark.compiled import compiled
from wals_spark.corpus.byte_strings import FNV_PRIME, FULL, ByteStringDictionary, slot_of
from wals_spark.corpus.document_batch import Bytes, DocumentBatch, Ints, Longs
from wals_spark.corpus.utf8 import code_point
from wals_spark.corpus.words import RULES

if TYPE_CHECKING:
    from tokenizers import Tokenizer

OTHER, LETTER, NUMBER, SPACE = 0, 1, 2, 4
WHITE_SPACE = (*range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F)
"""The characters of `\\s`, U+3000 besides."""
MAX_ADDED_TOKENS = 64
CALL_PIECES = 1 << 15
MAX_PIECES = 1 << 22
"""Distinct pieces remembered before starting afresh, about 200 MB."""


def is_byte_level(serialized: str) -> bool:
    """Whether the tokens of a text are its bytes, one character of a token for each (GPT-2, RoBERTa and their kin)."""
    rules = json.loads(serialized)
    before, model = rules.get("pre_tokenizer") or {}, rules.get("model") or {}
    return (
        rules.get("normalizer") is None
        and before.get("type") == "ByteLevel"
        and not before.get("add_prefix_space")
        and not model.get("continuing_subword_prefix")
        and not model.get("end_of_word_suffix")
    )


def encodes_by_piece(serialized: str) -> bool:
    """Whether a tokenizer is byte-level BPE whose pieces can be encoded one by one, as the module describes."""
    if not is_byte_level(serialized):
        return False
    rules = json.loads(serialized)
    model = rules.get("model") or {}
    return (
        rules["pre_tokenizer"].get("use_regex", True)
        and model.get("type", "BPE") == "BPE"
        and not model.get("dropout")
        and len(rules.get("added_tokens", ())) <= MAX_ADDED_TOKENS
    )


@lru_cache(maxsize=1)
def character_classes() -> Bytes:
    """`LETTER`, `NUMBER`, `SPACE`, `OTHER` or `RULES` (unknown to this Python) of every code point."""
    kinds = np.zeros(0x110000, np.uint8)
    of = {"L": LETTER, "N": NUMBER}
    category = unicodedata.category
    # Beyond plane 3 there is nothing but tags, variation selectors and private use.
    for code in range(0x40000):
        kind = category(chr(code))
        kinds[code] = RULES if kind == "Cn" else of.get(kind[0], OTHER)
    kinds[0x40000:0xE0000] = RULES
    kinds[0xE0000:0xF0000] = RULES
    kinds[[*WHITE_SPACE, 0x3000]] = SPACE
    return kinds


@compiled()
def _cut_pieces(data, offsets, first, kinds, table, count, pieces, ends):  # type: ignore[no-untyped-def]
    """Cut documents ``first ..`` into pieces; returns the first one not done, the number of pieces known, and why.

    Parameters
    ----------
    data : uint8 array
    offsets : int64 array of shape (documents + 1,)
    first : int
    kinds : uint8 array of shape (0x110000,)
        See `character_classes`.
    table : StringTable
        Of the pieces known; new ones are entered.
    count : int
        Number of pieces known.
    pieces : int32 array
        Filled from ``ends[first]`` on.
    ends : int64 array of shape (documents + 1,)

    Returns
    -------
    int, int, int
        The last one says why a document is not done: it holds a character of kind `RULES`, or the dictionary is
        `FULL`.
    """
    slots, hashes, starts, heap = table.slots, table.hashes, table.starts, table.heap
    basis, mask, prime = table.basis, table.mask, np.uint64(FNV_PRIME)
    filled = ends[first]
    for document in range(first, len(offsets) - 1):
        position, stop = offsets[document], offsets[document + 1]
        while position < stop:
            low = position
            code, width = code_point(data, position)
            kind = kinds[code]
            run = True
            if kind == SPACE:
                last = position
                while position < stop:
                    code, width = code_point(data, position)
                    kind = kinds[code]
                    if kind != SPACE:
                        break
                    last = position
                    position += width
                if position < stop and last > low:
                    position = last
                    run = False
                elif position == stop or data[low] != 0x20:
                    run = False
            elif code == 0x27 and position + 1 < stop:
                after = data[position + 1]
                if after in (0x73, 0x74, 0x6D, 0x64):  # 's 't 'm 'd
                    position += 2
                    run = False
                elif position + 2 < stop:
                    third = data[position + 2]
                    if (third == 0x65 and after in (0x72, 0x76)) or (after == 0x6C and third == 0x6C):  # 're 've 'll
                        position += 3
                        run = False
            if run:
                if kind == RULES:
                    return document, count, RULES
                while position < stop:
                    code, width = code_point(data, position)
                    if kinds[code] != kind:
                        break
                    position += width
            hashed = basis
            for at in range(low, position):
                hashed = (hashed ^ np.uint64(data[at])) * prime
            key = hashed & mask
            length = position - low
            slot = slot_of(key, len(slots))
            piece = -1
            while slots[slot] >= 0:
                candidate = slots[slot]
                origin = starts[candidate]
                if hashes[candidate] == key and starts[candidate + 1] - origin == length:
                    same = 0
                    while same < length and heap[origin + same] == data[low + same]:
                        same += 1
                    if same == length:
                        piece = candidate
                        break
                slot = (slot + 1) & (len(slots) - 1)
            if piece < 0:
                used = starts[count]
                if count + 2 > len(starts) or 2 * count + 2 > len(slots) or used + length > len(heap):
                    return document, count, FULL
                heap[used : used + length] = data[low:position]
                slots[slot] = count
                hashes[count] = key
                starts[count + 1] = used + length
                piece = count
                count += 1
            pieces[filled] = piece
            filled += 1
        ends[document + 1] = filled
    return len(offsets) - 1, count, 0


@compiled()
def _expand(pieces, ends, bounds, ids, tokens, offsets, first, last):  # type: ignore[no-untyped-def]
    """Write the tokens of the pieces of documents ``first .. last - 1``, from ``offsets[first]`` on."""
    filled = offsets[first]
    for document in range(first, last):
        for at in range(ends[document], ends[document + 1]):
            piece = pieces[at]
            for place in range(bounds[piece], bounds[piece + 1]):
                tokens[filled] = ids[place]
                filled += 1
        offsets[document + 1] = filled


class ByteLevelEncoder:
    """Token ids of documents by a supported tokenizer.

    Parameters
    ----------
    tokenizer : tokenizers.Tokenizer
        Encodes the pieces.
    whole : callable
        Texts -> ids of each, by the tokenizer without this short cut: for the documents left to it.
    """

    def __init__(self, tokenizer: Tokenizer, whole: Callable[[list[str]], list[Ints]]) -> None:
        self.tokenizer, self.whole = tokenizer, whole
        self._added = [token.content.encode() for token in tokenizer.get_added_tokens_decoder().values()]
        self._classes = character_classes()
        self._forget()

    def _forget(self) -> None:
        self._dictionary = ByteStringDictionary()
        self._bounds = np.zeros(1, np.int64)
        self._ids = np.zeros(0, np.int32)

    def encode(self, batch: DocumentBatch) -> tuple[Ints, Longs]:
        """Token ids and document offsets, as ``tokenizer.encode(text, add_special_tokens=False)`` gives them."""
        if self._dictionary.size > MAX_PIECES:
            self._forget()
        documents = len(batch)
        pieces = np.empty(len(batch.data), np.int32)
        ends = np.zeros(documents + 1, np.int64)
        by_rules = set(self._with_added_tokens(batch))
        document = 0
        while document < documents:
            document, state = self._cut(batch, document, pieces, ends)
            if state == FULL:
                self._dictionary.grow()
            elif state == RULES:
                by_rules.add(document)
                ends[document + 1] = ends[document]
                document += 1
        self._encode_new()
        left = sorted(by_rules)
        ids = dict(zip(left, self.whole([batch.text(index).decode() for index in left]), strict=True))
        lengths = np.diff(self._bounds)[pieces[: ends[-1]]]
        totals = np.concatenate([[0], np.cumsum(lengths)])[ends]
        sizes = np.diff(totals)
        for index in left:
            sizes[index] = len(ids[index])
        offsets = np.zeros(documents + 1, np.int64)
        np.cumsum(sizes, out=offsets[1:])
        tokens = np.empty(int(offsets[-1]), np.int32)
        start = 0
        for index in [*left, documents]:
            _expand(pieces, ends, self._bounds, self._ids, tokens, offsets, start, index)
            if index < documents:
                offsets[index + 1] = offsets[index] + len(ids[index])
                tokens[offsets[index] : offsets[index + 1]] = ids[index]
            start = index + 1
        return tokens, offsets

    def _with_added_tokens(self, batch: DocumentBatch) -> list[int]:
        """Documents that may hold an added token."""
        data = batch.data.tobytes()
        found: set[int] = set()
        for content in self._added:
            at = data.find(content)
            while at >= 0:
                document = int(np.searchsorted(batch.offsets, at, side="right")) - 1
                found.add(document)
                at = data.find(content, int(batch.offsets[document + 1]) - len(content) + 1)
        return sorted(found)

    def _cut(self, batch: DocumentBatch, document: int, pieces: Ints, ends: Longs) -> tuple[int, int]:
        dictionary = self._dictionary
        document, dictionary.size, state = _cut_pieces(
            batch.data, batch.offsets, document, self._classes, dictionary.table, dictionary.size, pieces, ends
        )
        return document, state

    def _encode_new(self) -> None:
        """Send the pieces seen for the first time through the tokenizer."""
        known = len(self._bounds) - 1
        if known == self._dictionary.size:
            return
        encode: Callable[..., Any] = self.tokenizer.encode_batch_fast
        new = self._dictionary.words(known)
        for start in range(0, len(new), CALL_PIECES):
            part = [encoding.ids for encoding in encode(new[start : start + CALL_PIECES], add_special_tokens=False)]
            lengths = np.fromiter(map(len, part), np.int64, len(part))
            self._bounds = np.concatenate([self._bounds, self._bounds[-1] + np.cumsum(lengths)])
            flat = np.fromiter((token for ids in part for token in ids), np.int32, int(lengths.sum()))
            self._ids = np.concatenate([self._ids, flat])
