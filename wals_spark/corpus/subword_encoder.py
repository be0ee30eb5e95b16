"""Documents through a Hugging Face fast tokenizer, as the model will see them, with paragraph ends."""

from __future__ import annotations

import itertools
import json
import logging
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wals_spark.corpus.byte_level_bpe import ByteLevelEncoder, encodes_by_piece, is_byte_level
from wals_spark.corpus.document_batch import DocumentBatch, Ints, Longs, TokenizedDocuments
from wals_spark.corpus.sentences import punctuation_flags, sentence_ends
from wals_spark.corpus.word_rules import SENTENCE_END
from wals_spark.token_shards import OOV, SPECIAL
from wals_spark.tokenizer import unknown_id

if TYPE_CHECKING:
    from tokenizers import Tokenizer


logger = logging.getLogger(__name__)

_NEWLINE = 0x0A
_SAFE_CUT = re.compile(r"(?<=[A-Za-z])(?= [A-Za-z])|(?<=\S\n)(?=\S)")
COMPARED_CHARACTERS = 100_000
"""Of each task's first documents that are encoded both ways, about a tenth of a second."""
CALL_CHARACTERS = 1 << 20
"""Characters that go to the tokenizer in one call, about 40 MB of its memory; longer documents are cut."""


@lru_cache(maxsize=2)
def parse_tokenizer(serialized: str) -> Tokenizer:
    """The tokenizer of a worker process, parsed once."""
    from tokenizers import Tokenizer

    return Tokenizer.from_str(serialized)


class SubwordEncoder:
    """Encodes batches with a tokenizer; special tokens in the text become `SPECIAL`, the unknown token `OOV`."""

    def __init__(self, serialized: str, special_ids: frozenset[int], size: int) -> None:
        self.tokenizer = parse_tokenizer(untrimmed(serialized))
        self.byte_level = is_byte_level(serialized)
        self.quick: ByteLevelEncoder | None = None
        if encodes_by_piece(serialized):
            self.quick = ByteLevelEncoder(self.tokenizer, lambda texts: self._encode_texts(texts, with_spans=False)[0])
        self._compared = 0
        self.size = size
        self._special = np.zeros(size, bool)
        self._special[list(special_ids)] = True
        self._punctuation = punctuation_flags()
        self._bytes = np.zeros(size, np.int64)
        for token, index in self.tokenizer.get_vocab(with_added_tokens=False).items():
            self._bytes[index] = len(token)  # a character of a byte-level token is a byte
        self._any_length = np.zeros(size, bool)
        for index, added in self.tokenizer.get_added_tokens_decoder().items():
            self._bytes[index] = len(added.content.encode())
            self._any_length[index] = added.lstrip or added.rstrip  # takes the white space beside it
        self._unknown = unknown_id(json.loads(serialized), self.tokenizer.get_vocab(with_added_tokens=True))
        if self._unknown is not None:
            self._any_length[self._unknown] = True

    def encode(self, batch: DocumentBatch) -> TokenizedDocuments:
        """Token ids of documents, with the ends of paragraphs and sentences."""
        if self._compared < COMPARED_CHARACTERS:
            self._compare(batch)
        if self.quick is not None:
            tokens, offsets = self.quick.encode(batch)
            spans: list[Longs] = []
        else:
            texts = [batch.text(index).decode() for index in range(len(batch))]
            ids, spans = self._encode_texts(texts, with_spans=not self.byte_level)
            offsets = np.zeros(len(batch) + 1, np.int64)
            np.cumsum([len(part) for part in ids], out=offsets[1:])
            tokens = np.concatenate([np.zeros(0, np.int32), *ids])
        if self.byte_level:
            breaks, break_offsets = self._byte_level_breaks(batch, tokens, offsets)
        else:
            breaks, break_offsets = _joined(
                [find_breaks(batch.text(index).decode(), span) for index, span in enumerate(spans)]
            )
        unknown = tokens == (-1 if self._unknown is None else self._unknown)
        tokens[self._special[tokens]] = SPECIAL
        tokens[unknown] = OOV
        return TokenizedDocuments(tokens, offsets, breaks, break_offsets)

    def _compare(self, batch: DocumentBatch) -> None:
        """Encode the first documents both ways; where they differ, do without the quick one from then on."""
        for index in range(len(batch)):
            if self.quick is None or self._compared >= COMPARED_CHARACTERS:
                return
            text = batch.text(index)
            if len(text) > CALL_CHARACTERS:
                continue
            self._compared += len(text)
            quick, _ = self.quick.encode(DocumentBatch.from_texts([batch.ids[index]], [text]))
            plain = self._encode_texts([text.decode()], with_spans=False)[0][0]
            if not np.array_equal(quick, plain):
                logger.warning(
                    "document %r has other tokens by pieces than as a whole; the tokenizer encodes whole documents "
                    "from here on, which is slower",
                    batch.ids[index],
                )
                self.quick = None

    def _encode_texts(self, texts: list[str], *, with_spans: bool) -> tuple[list[Ints], list[Longs]]:
        """Ids of each text, and the spans of its tokens where they are asked for; in calls of bounded memory."""
        ids: list[list[Ints]] = [[] for _ in texts]
        spans: list[list[Longs]] = [[] for _ in texts]
        parts = [(index, start, part) for index, text in enumerate(texts) for start, part in cut_long(text)]
        # Without offsets encoding is quicker; byte-level tokens say themselves where they are.
        tokenizer = self.tokenizer
        encode: Callable[..., Any] = tokenizer.encode_batch if with_spans else tokenizer.encode_batch_fast
        first = held = 0
        for last, (_, _, text) in enumerate(parts, start=1):
            held += len(text)
            if held < CALL_CHARACTERS and last < len(parts):
                continue
            group = parts[first:last]
            encodings = encode([part for _, _, part in group], add_special_tokens=False)
            for (index, start, _), encoding in zip(group, encodings, strict=True):
                ids[index].append(np.array(encoding.ids, np.int32))
                if with_spans:
                    spans[index].append(np.array(encoding.offsets, np.int64).reshape(-1, 2) + start)
            first, held = last, 0
        return [_flat(found) for found in ids], [np.concatenate(found) for found in spans if found]

    def _byte_level_breaks(self, batch: DocumentBatch, tokens: Ints, offsets: Longs) -> tuple[Ints, Longs]:
        """As `find_breaks`, on bytes: byte-level tokens are the text's bytes, so their lengths say where they are.

        Where they are not, the tokenizer is asked for the spans of the document's tokens: a special token took white
        space with it, or a byte has no token.
        """
        ends = np.cumsum(self._bytes[tokens])
        at_document = np.concatenate([[0], ends])[offsets]
        of_token = np.repeat(np.arange(len(batch)), np.diff(offsets))
        lossy = np.diff(at_document) != np.diff(batch.offsets)
        lossy[of_token[self._any_length[tokens]]] = True
        ends += (batch.offsets[:-1] - at_document[:-1])[of_token]
        inexact = lossy[of_token]
        ends[inexact] = batch.offsets[1:][of_token[inexact]]  # in order, and within the document
        feeds = _outside(np.flatnonzero(batch.data == _NEWLINE), batch.offsets, lossy)
        stops = _outside(sentence_ends(batch.data, batch.offsets, self._punctuation), batch.offsets, lossy, after=1)
        after_paragraph = np.searchsorted(ends, feeds, side="right")
        after_sentence = np.searchsorted(ends, stops, side="right") - 1
        codes, bounds = break_codes(after_paragraph, after_sentence, offsets)
        if not lossy.any():
            return codes, bounds
        parts = [codes[low:high] for low, high in itertools.pairwise(bounds)]
        for index in np.flatnonzero(lossy).tolist():
            text = batch.text(index).decode()
            parts[index] = find_breaks(text, self._encode_texts([text], with_spans=True)[1][0])
        return _joined(parts)


def _outside(positions: Longs, offsets: Longs, documents: npt.NDArray[np.bool_], after: int = 0) -> Longs:
    """Those positions of bytes (with `after` 1: of ends of bytes) that are not in the documents marked."""
    return positions[~documents[np.searchsorted(offsets, positions - after, side="right") - 1]]


def untrimmed(serialized: str) -> str:
    """The tokenizer with offsets of all that a token holds; by default byte-level ones leave out its white space."""
    rules = json.loads(serialized)

    def change(rule: Any) -> None:
        if isinstance(rule, dict):
            if "trim_offsets" in rule:
                rule["trim_offsets"] = False
            for value in rule.values():
                change(value)
        elif isinstance(rule, list):
            for value in rule:
                change(value)

    for key in ("pre_tokenizer", "post_processor"):
        change(rules.get(key))
    return json.dumps(rules)


def cut_long(text: str) -> Iterator[tuple[int, str]]:
    """A text in parts of about `CALL_CHARACTERS`, with their positions; a usual document is one part.

    The cuts are before a space between two ASCII letters, or after a lone line feed between two characters that
    are no white space: there no piece of a GPT-2 or whitespace pre-tokenizer goes across.
    """
    start = 0
    while len(text) - start > CALL_CHARACTERS and (found := _SAFE_CUT.search(text, start + CALL_CHARACTERS)):
        yield start, text[start : found.start()]
        start = found.start()
    yield start, text[start:]


def _flat(parts: list[Ints]) -> Ints:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _joined(parts: list[Ints]) -> tuple[Ints, Longs]:
    bounds = np.zeros(len(parts) + 1, np.int64)
    np.cumsum([len(part) for part in parts], out=bounds[1:])
    return np.concatenate([np.zeros(0, np.int32), *parts]), bounds


def find_breaks(text: str, spans: Longs) -> Ints:
    """Where paragraphs and sentences end, as `token_shards` codes it.

    Parameters
    ----------
    spans : int64 array of shape (tokens, 2)
        First and last character position + 1 of each token.

    Returns
    -------
    int32 array
        A paragraph ends after the token that holds the line feed (or the last one before it), a sentence
        before the token that holds the white space after its full stop.
    """
    if len(spans) < 2:
        return np.zeros(0, np.int32)
    starts, ends = spans[:, 0], spans[:, 1]
    feeds = np.array([at for at, character in enumerate(text) if character == "\n"], np.int64)
    stops = np.array([match.end() for match in SENTENCE_END.finditer(text)], np.int64)
    after_paragraph = np.searchsorted(starts, feeds, side="right") - 1
    after_sentence = np.searchsorted(ends, stops, side="right") - 1
    return break_codes(after_paragraph, after_sentence, np.array([0, len(spans)]))[0]


def break_codes(after_paragraph: Longs, after_sentence: Longs, offsets: Longs) -> tuple[Ints, Longs]:
    """Codes and offsets of breaks, from the flat positions of the tokens that paragraphs and sentences end after.

    An end before a document's first token or after its last one is none. Where both end, the paragraph counts.
    """
    kinds = np.concatenate([np.ones(len(after_paragraph), np.int64), np.zeros(len(after_sentence), np.int64)])
    after = np.concatenate([after_paragraph, after_sentence])
    document = np.clip(np.searchsorted(offsets, after, side="right") - 1, 0, len(offsets) - 2)
    within = after - offsets[document]
    kept = (after >= 0) & (within < offsets[document + 1] - offsets[document] - 1)
    after, kinds = after[kept], kinds[kept]
    order = np.lexsort((-kinds, after))
    after, kinds = after[order], kinds[order]
    first = np.concatenate([[True], after[1:] != after[:-1]]) if len(after) else np.zeros(0, bool)
    after, kinds = after[first], kinds[first]
    document = np.searchsorted(offsets, after, side="right") - 1
    counts = np.bincount(document, minlength=len(offsets) - 1) if len(after) else np.zeros(len(offsets) - 1, np.int64)
    bounds = np.zeros(len(offsets), np.int64)
    np.cumsum(counts, out=bounds[1:])
    return (2 * (after - offsets[document]) + kinds).astype(np.int32), bounds
