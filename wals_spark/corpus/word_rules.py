"""What the words of a text are, in plain `re`: the meaning that `words` must reproduce."""

from __future__ import annotations

import re
from collections.abc import Callable

CASES: dict[str, Callable[[str], str]] = {"keep": str, "lower": str.lower, "fold": str.casefold}
SENTENCE_END = re.compile("[.!?\u2026][\"')\\]}\u2019\u201d\u00bb]*(?=[ \t\r\v\f\n])|(?=[\u3002\uff01\uff1f])")
"""Ends just before the character that ends the sentence: white space after a terminator, or a full-width one."""


def words_and_breaks(text: str, pattern: re.Pattern[str], case: str) -> tuple[list[str], list[int]]:
    """The words of a document, and the ends of its sentences and paragraphs.

    Words are the non-empty matches of `pattern` in the text after case folding. A paragraph ends at a line
    feed, a sentence at ``. ! ? ...`` with closing quotes and brackets after it and white space after those,
    or at a full-width ``. ! ?``; an end counts where it lies between two words.

    Returns
    -------
    words : list of str
    breaks : list of int
        ``2 i + 1`` for a paragraph, else ``2 i`` for a sentence, that ends between words i and i + 1.
    """
    folded = CASES[case](text)
    matches = [match for match in pattern.finditer(folded) if match.end() > match.start()]
    sentence_ends = [match.end() for match in SENTENCE_END.finditer(folded)]
    line_feeds = [position for position, character in enumerate(folded) if character == "\n"]
    breaks = []
    sentence = line = 0
    for index in range(len(matches) - 1):
        low, high = matches[index].end(), matches[index + 1].start()
        while sentence < len(sentence_ends) and sentence_ends[sentence] < low:
            sentence += 1
        while line < len(line_feeds) and line_feeds[line] < low:
            line += 1
        if line < len(line_feeds) and line_feeds[line] < high:
            breaks.append(2 * index + 1)
        elif sentence < len(sentence_ends) and sentence_ends[sentence] < high:
            breaks.append(2 * index)
    return [match.group() for match in matches], breaks
