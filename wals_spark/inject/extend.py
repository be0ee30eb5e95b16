r"""New tokens: chosen from the corpus, appended to the tokenizer, their rows from factors or from a baseline.

Tokens are words that the tokenizer splits: those that save the most tokens, count x (pieces - 1). A
byte-level BPE gets them by merges appended after its own, left to right over the word's own pieces, so that
every other word segments as before unless it begins with the same pieces.

Rows, all under one interface (`new_rows`):

- ``factors``: aligned and norm-matched rows (`wals_spark.inject.align`);
- ``subtokens``: mean of the rows of the token's old pieces (fast vocabulary transfer);
- ``mean``: mean of all old rows (what transformers does, without its noise);
- ``overlap``: old rows weighted by sparsemax of factor cosines (as FOCUS does with fastText).

Head bias of a new token: a + g log c, fitted on old ones.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from wals_spark import encoded
from wals_spark.errors import InputError
from wals_spark.inject.tokenizer_json import kind_of, merges_of, vocabulary_of
from wals_spark.tokenizer import LoadedTokenizer

METHODS = ("factors", "subtokens", "mean", "overlap")
WORD_START = "Ġ"
_CHUNK = 512
_LONGEST = 12


def is_word_piece(token: str) -> bool:
    """Whether a byte-level token consists of letters only, with or without a leading space."""
    body = token.removeprefix(WORD_START)
    return bool(body) and body.isalpha() and body.isascii()


def split_words(
    directories: Sequence[str], tokens: Sequence[str], *, min_count: int = 20, sample_tokens: int = 50_000_000
) -> list[tuple[tuple[int, ...], int]]:
    """Words of encoded text that take two pieces or more, with their counts, most saved tokens first.

    Parameters
    ----------
    directories : of encoded shards
    tokens : token strings by id
    min_count : rarer words are left out
    sample_tokens : read at most so many tokens
    """
    piece = np.array([is_word_piece(token) for token in tokens])
    start = np.array([token.startswith(WORD_START) for token in tokens])
    counts: Counter[tuple[int, ...]] = Counter()
    seen = 0
    for shard in (shard for directory in directories for shard in encoded.list_shards(directory)):
        for chunk in encoded.read_shards([shard.path]):
            ids = chunk.tokens[chunk.overlap :]
            seen += len(ids)
            counts.update(_words(ids, piece, start))
            if seen >= sample_tokens:
                break
        if seen >= sample_tokens:
            break
    found = [(word, count) for word, count in counts.items() if count >= min_count]
    return sorted(found, key=lambda item: (-item[1] * (len(item[0]) - 1), item[0]))


def _words(ids: np.ndarray, piece: np.ndarray, start: np.ndarray) -> Iterable[tuple[int, ...]]:
    """Runs of two pieces or more: a word start and what continues it, up to the next piece of another kind."""
    known = ids >= 0
    safe = np.where(known, ids, 0)
    letters = known & piece[safe]
    begins = letters & start[safe]
    continues = letters & ~begins
    first = np.flatnonzero(begins[:-1] & continues[1:])
    stops = np.flatnonzero(~continues)
    ends = np.append(stops, len(ids))[np.searchsorted(stops, first + 1)]
    for low, high in zip(first.tolist(), ends.tolist(), strict=True):
        if high - low <= _LONGEST:
            yield tuple(ids[low:high].tolist())


def extend_tokenizer(tokenizer: Mapping[str, Any], words: Iterable[Sequence[str]]) -> tuple[dict[str, Any], list[str]]:
    """tokenizer.json of a byte-level BPE with words appended; ids of old tokens stay.

    Parameters
    ----------
    tokenizer : content of tokenizer.json
    words : each as the token strings of its old pieces

    Returns
    -------
    tokenizer : dict
    added : list of str
        New tokens by id: the words, and what lies between on the way to them.

    Raises
    ------
    InputError
        Not a BPE tokenizer, or a piece that it does not have.
    """
    if kind_of(tokenizer) != "BPE":
        raise InputError(
            f"extend: a tokenizer of type {kind_of(tokenizer)}, expected BPE; add words to others with "
            "tokenizer.add_tokens"
        )
    result = copy.deepcopy(dict(tokenizer))
    vocabulary = result["model"]["vocab"]
    merges = [list(pair) for pair in merges_of(tokenizer)]
    present = {tuple(pair) for pair in merges}
    size = max(vocabulary_of(tokenizer).values()) + 1
    added: list[str] = []
    for word in words:
        unknown = [piece for piece in word if piece not in vocabulary]
        if unknown or len(word) < 2:
            raise InputError(f"extend: {list(word)} is not a word of two or more of the tokenizer's pieces")
        left = word[0]
        for right in word[1:]:
            if (left, right) not in present:
                present.add((left, right))
                merges.append([left, right])
            left += right
            if left not in vocabulary:
                vocabulary[left] = size
                added.append(left)
                size += 1
    result["model"]["merges"] = merges
    return result, added


def pieces_of(new: LoadedTokenizer, old: LoadedTokenizer) -> list[np.ndarray]:
    """Old ids of the text of every token that only the new tokenizer has."""
    texts = [new.tokenizer.decode([index]) for index in range(len(old.tokens), len(new.tokens))]
    return [
        np.array(encoding.ids, np.int64) for encoding in old.tokenizer.encode_batch(texts, add_special_tokens=False)
    ]


def mean_of_pieces(E: np.ndarray, pieces: Sequence[np.ndarray]) -> np.ndarray:
    """Mean of the old rows of each token's pieces, float32 (n, d); the mean row for a token without pieces."""
    rows = np.empty((len(pieces), E.shape[1]), np.float32)
    for index, ids in enumerate(pieces):
        rows[index] = E[ids].mean(axis=0) if len(ids) else E.mean(axis=0)
    return rows


def sparsemax(z: np.ndarray) -> np.ndarray:
    """Euclidean projection of each row onto the simplex (Martins and Astudillo 2016), float64 (n, m)."""
    ordered = -np.sort(-z, axis=1)
    sums = np.cumsum(ordered, axis=1) - 1
    steps = np.arange(1, z.shape[1] + 1)
    support = (ordered * steps > sums).sum(axis=1)
    threshold = sums[np.arange(len(z)), support - 1] / support
    return np.maximum(z - threshold[:, None], 0)


def overlap_rows(new: np.ndarray, old: np.ndarray, E: np.ndarray) -> np.ndarray:
    """Old rows weighted by sparsemax of the cosines of factors, float32 (n, d).

    Parameters
    ----------
    new : (n, k), factors of new tokens
    old : (m, k), of well-known old tokens
    E : (m, d), their rows
    """
    rows = np.empty((len(new), E.shape[1]), np.float32)
    unit = old / np.maximum(np.linalg.norm(old, axis=1, keepdims=True), 1e-12)
    for begin in range(0, len(new), _CHUNK):
        part = new[begin : begin + _CHUNK]
        cosine = (part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12)) @ unit.T
        rows[begin : begin + _CHUNK] = sparsemax(cosine.astype(np.float64)) @ E
    return rows


def fitted_bias(bias: np.ndarray, counts: np.ndarray, anchors: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """A + g log(c + 1/2) of `wanted` counts, least squares over the anchors, float64."""
    logs = np.log(counts[anchors] + 0.5)
    design = np.stack([np.ones_like(logs), logs], axis=1)
    (a, g), *_ = np.linalg.lstsq(design, bias[anchors].astype(np.float64), rcond=None)
    return a + g * np.log(wanted + 0.5)
