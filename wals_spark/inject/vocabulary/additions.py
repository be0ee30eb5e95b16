r"""Which words can be added to a tokenizer so that only their own segmentation changes.

WordPiece takes the longest entry that the rest of a word begins with: an added word takes over the beginning of every
longer word whose first piece is shorter, and the rest of that word is split anew. So longer words of the corpus are
added with it, up to `MOST_FORMS`; a word with more of them is left out. BPE and Unigram change text only where it holds
a word's pieces in a row.

A word that does not become one token (two additions may compete for the same text) is left out as well.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wals_spark.errors import InputError
from wals_spark.inject.vocabulary.candidates import CandidateWord
from wals_spark.inject.vocabulary.extend import extend_tokenizer
from wals_spark.inject.vocabulary.tokenizer_json import subword_affixes
from wals_spark.tokenizer import LoadedTokenizer

MOST_FORMS = 6


@dataclass(frozen=True)
class Extension:
    """A tokenizer with words added.

    Attributes
    ----------
    content : dict of str to object
        Of tokenizer.json.
    added : list of str
        New tokens by id.
    words : list of CandidateWord
        Each is one token now.
    left_out : dict of str to str
        Words that were not added, and why.
    """

    content: dict[str, Any]
    added: list[str]
    words: list[CandidateWord]
    left_out: dict[str, str]


def with_longer_words(
    words: Sequence[CandidateWord], counted: Sequence[CandidateWord], tokenizer: LoadedTokenizer, most: int
) -> tuple[list[CandidateWord], dict[str, str]]:
    """Choose words for WordPiece, each with the longer words of the corpus that it would split anew.

    Parameters
    ----------
    words : sequence of CandidateWord
        To choose from, the best first.
    counted : sequence of CandidateWord
        All words of the corpus that the tokenizer splits.
    tokenizer : LoadedTokenizer
        The one to be extended.
    most : int
        Words to choose, longer ones included.

    Returns
    -------
    chosen : list of CandidateWord
    left_out : dict of str to str
        Words that have too many longer ones, and why.
    """
    prefix = subword_affixes(json.loads(tokenizer.tokenizer.to_str()))[0]

    def spelled(word: CandidateWord) -> str:
        first, *rest = (tokenizer.tokens[index] for index in word.pieces)
        return "".join([first, *(piece.removeprefix(prefix) for piece in rest)])

    by_spelling = {spelled(word): word for word in [*counted, *words]}
    order = sorted(by_spelling)

    def longer(text: str) -> set[str]:
        """Spellings that begin with `text` and are split anew once it is an entry, and those that these take along."""
        found, waiting = {text}, [text]
        while waiting:
            start = waiting.pop()
            place = bisect_left(order, start)
            while place < len(order) and order[place].startswith(start) and len(found) <= MOST_FORMS + 1:
                other = order[place]
                if other not in found and len(tokenizer.tokens[by_spelling[other].pieces[0]]) < len(start):
                    found.add(other)
                    waiting.append(other)
                place += 1
        return found - {text}

    chosen: dict[str, CandidateWord] = {}
    left_out: dict[str, str] = {}
    for word in words:
        text = spelled(word)
        forms = longer(text)
        new = {text, *forms} - chosen.keys()
        if len(forms) > MOST_FORMS:
            left_out[word.text] = f"more than {MOST_FORMS} longer words begin with it and would be split anew"
        elif new and len(chosen) + len(new) <= most:
            chosen.update((form, by_spelling[form]) for form in sorted(new, key=lambda form: -by_spelling[form].saved))
    return list(chosen.values()), left_out


def build_extension(
    content: Mapping[str, Any], tokenizer: LoadedTokenizer, words: Sequence[CandidateWord]
) -> Extension:
    """Add words, and leave out those that the new tokenizer does not make one token.

    Parameters
    ----------
    content : dict of str to object
        Of the tokenizer's tokenizer.json.
    tokenizer : LoadedTokenizer
        The same, loaded.
    words : sequence of CandidateWord

    Returns
    -------
    Extension

    Raises
    ------
    InputError
        No word is left, or the tokenizer cannot be extended.
    """
    from tokenizers import Tokenizer

    left: list[CandidateWord] = list(words)
    left_out: dict[str, str] = {}
    while left:
        pieces = [[tokenizer.tokens[index] for index in word.pieces] for word in left]
        extended, added = extend_tokenizer(content, pieces)
        loaded = Tokenizer.from_str(json.dumps(extended))
        loaded.no_truncation()
        loaded.no_padding()
        encodings = loaded.encode_batch([f" {word.text}" for word in left], add_special_tokens=False)
        whole = [len(encoding.ids) == 1 and encoding.ids[0] >= len(tokenizer.tokens) for encoding in encodings]
        if all(whole):
            return Extension(extended, added, left, left_out)
        for word, encoding, right in zip(left, encodings, whole, strict=True):
            if not right:
                left_out[word.text] = f"it would be segmented as {' '.join(encoding.tokens)}"
        left = [word for word, right in zip(left, whole, strict=True) if right]
    raise InputError(
        f"no word can be added: none of {len(words)} becomes one token (the first: "
        f"{next(iter(left_out.values()), 'there is none')}); give others"
    )
