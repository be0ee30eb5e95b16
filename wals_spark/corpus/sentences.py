"""Ends of sentences in UTF-8 bytes: what `word_rules.SENTENCE_END` says, as a compiled loop."""

from __future__ import annotations

import sys

import numpy as np

from wals_spark.compiled import compiled
from wals_spark.corpus.document_batch import Bytes, Longs
from wals_spark.corpus.utf8 import code_point

TERMINATOR, CLOSER, SPACE, NEWLINE, FULL_STOP = 1, 2, 4, 8, 16
"""Flags of characters: see `punctuation_flags`."""


def punctuation_flags() -> Bytes:
    """Flags of the characters that end sentences and paragraphs, as in `word_rules.SENTENCE_END`."""
    flags = np.zeros(sys.maxunicode + 1, np.uint8)
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


def sentence_ends(data: Bytes, offsets: Longs, flags: Bytes) -> Longs:
    """Byte positions where `word_rules.SENTENCE_END` matches end, in documents of valid UTF-8."""
    found = np.empty(len(data), np.int64)
    return found[: _sentence_ends(data, offsets, flags, found)].copy()


@compiled()
def _sentence_ends(data, offsets, flags, found):  # type: ignore[no-untyped-def]
    count = 0
    for document in range(len(offsets) - 1):
        position = offsets[document]
        terminated = False
        while position < offsets[document + 1]:
            code, width = code_point(data, position)
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
