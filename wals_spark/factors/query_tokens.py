"""The tokens whose neighbours are shown: those that were named, or some of middle frequency."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wals_spark.errors import InputError
from wals_spark.factors.words import WordLookup, readable

SHOWN_BY_DEFAULT = 10


def middle_tokens(tokens: Sequence[str], counts: np.ndarray, min_count: int) -> list[int]:
    """Ten ids at even steps of log frequency rank, from the 1 % most frequent words to the 30 %.

    Words of four letters or more in lower case come into question; any token where there are too few.
    """
    lookup = WordLookup(tokens)
    order = np.argsort(-counts, kind="stable")
    seen = [int(i) for i in order if counts[i] >= max(1, min_count)]
    words = [i for i in seen if _is_plain_word(lookup, tokens[i])]
    pool = words if len(words) >= SHOWN_BY_DEFAULT else seen
    if not pool:
        return []
    low, high = max(1.0, 0.01 * len(pool)), max(1.0, 0.3 * len(pool))
    ranks = np.unique(np.geomspace(low, high, SHOWN_BY_DEFAULT).astype(np.int64) - 1)
    return [pool[rank] for rank in ranks]


def _is_plain_word(lookup: WordLookup, token: str) -> bool:
    shown = readable(token, lookup.style)
    return lookup.starts_word(token) and len(shown) >= 4 and shown.isalpha() and shown == shown.lower()


def query_ids(lookup: WordLookup, wanted: Sequence[str]) -> list[int]:
    """The ids of words or exact token strings.

    Raises
    ------
    InputError
        One of them is no token of the vocabulary.
    """
    found = []
    for word in wanted:
        number = lookup.token(word) if lookup.style == "words" else None
        number = lookup.find(word) if number is None else number
        number = lookup.token(word) if number is None else number
        if number is None:
            raise InputError(
                f"neighbours.tokens: {word!r} is not among the tokens of this vocabulary; "
                "give a whole word of it, or an exact token string"
            )
        found.append(number)
    return found
