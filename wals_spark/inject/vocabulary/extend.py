r"""New tokens: appended to the tokenizer, their rows from factors or from a baseline.

A word is added to a tokenizer so that other text segments as before, unless it has the same pieces in a row:

- BPE by merges appended after its own, left to right over the word's own pieces;
- Unigram by a piece whose score is just above the sum of the scores of the word's pieces, the more the more pieces they
  are, so that it wins over them, and over shorter additions within it, and over nothing else;
- WordPiece by an entry of its vocabulary; being greedy, it then prefers the word to its beginnings, in longer words too
  (`wals_spark.inject.vocabulary.additions`).

Rows of new tokens (`wals_spark.inject.modes.extension_edit`):

- ``factors``: aligned and norm-matched rows (`wals_spark.inject.align`);
- ``subtokens``: mean of the rows of the token's old pieces, as fast vocabulary transfer has it;
- ``mean``: mean of all old rows, as transformers has it, without its noise;
- ``overlap``: old rows weighted by sparsemax of factor cosines, as FOCUS has it with fastText vectors.

Head bias of a new token: a + g log(c + 1/2), a and g fitted on old ones.

References
----------
K. Dobler, G. de Melo, "FOCUS: effective embedding initialization for monolingual specialization of multilingual
models", EMNLP 2023.

A. F. T. Martins, R. F. Astudillo, "From softmax to sparsemax: a sparse model of attention and multi-label
classification", ICML 2016.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from wals_spark.errors import InputError
from wals_spark.inject.vocabulary.tokenizer_json import (
    bpe_merges,
    check_tokenizer_json,
    merged,
    subword_affixes,
    token_ids,
    tokenizer_model_type,
)
from wals_spark.tokenizer import LoadedTokenizer

_CHUNK = 512
_AHEAD = 1e-4
"""By how much a Unigram word's score exceeds that of its pieces, for every piece beyond the first."""


def extend_tokenizer(tokenizer: Mapping[str, Any], words: Iterable[Sequence[str]]) -> tuple[dict[str, Any], list[str]]:
    """tokenizer.json with words appended; ids of old tokens stay.

    Parameters
    ----------
    tokenizer : dict of str to object
        The content of tokenizer.json.
    words : iterable of sequence of str
        Each as the token strings of its old pieces.

    Returns
    -------
    tokenizer : dict of str to object
    added : list of str
        New tokens by id: the words and, for BPE, the beginnings of words that their merges pass through.

    Raises
    ------
    InputError
        A tokenizer that is neither BPE nor Unigram nor WordPiece, or a piece that it does not have.
    """
    vocabulary = token_ids(tokenizer)
    words = [tuple(word) for word in words]
    for word in words:
        if len(word) < 2 or any(piece not in vocabulary for piece in word):
            raise InputError(f"extend: {list(word)} is not a word of two or more of the tokenizer's pieces")
    kind, result = tokenizer_model_type(tokenizer), copy.deepcopy(dict(tokenizer))
    known, size = set(vocabulary), max(vocabulary.values()) + 1
    if kind == "BPE":
        added = _add_merges(result["model"], words, known, bpe_merges(tokenizer), subword_affixes(tokenizer)[0])
    elif kind == "Unigram":
        if size != len(result["model"]["vocab"]):
            raise InputError(
                f"extend: the tokenizer has {len(result['model']['vocab'])} pieces and ids up to {size - 1}: a Unigram "
                "tokenizer with tokens added behind its pieces cannot get more pieces"
            )
        added = _add_pieces(result["model"], words, known)
    elif kind == "WordPiece":
        prefix = result["model"].get("continuing_subword_prefix") or ""
        spelled = ("".join([word[0], *(piece.removeprefix(prefix) for piece in word[1:])]) for word in words)
        added = [word for word in dict.fromkeys(spelled) if word not in known]
    else:
        raise InputError(f"extend: a tokenizer of type {kind}, expected BPE, Unigram or WordPiece")
    if kind != "Unigram":
        result["model"]["vocab"].update({token: size + number for number, token in enumerate(added)})
    check_tokenizer_json(result, "extend")
    return result, added


def _add_merges(
    model: dict[str, Any],
    words: Iterable[Sequence[str]],
    known: set[str],
    merges: list[tuple[str, str]],
    prefix: str,
) -> list[str]:
    """Append the merges that lead to the words (see `merged` for the prefix); returns the new tokens in order."""
    present = set(merges)
    added = []
    for word in words:
        left = word[0]
        for right in word[1:]:
            if (left, right) not in present:
                present.add((left, right))
                merges.append((left, right))
            left = merged(left, right, prefix)
            if left not in known:
                known.add(left)
                added.append(left)
    model["merges"] = [list(pair) for pair in merges]
    return added


def _add_pieces(model: dict[str, Any], words: Iterable[Sequence[str]], known: set[str]) -> list[str]:
    """Append the words as pieces, scored just above their own pieces."""
    scores = dict(model["vocab"])
    added = []
    for word in words:
        joined = "".join(word)
        if joined not in known:
            known.add(joined)
            added.append(joined)
            model["vocab"].append([joined, sum(scores[piece] for piece in word) + _AHEAD * (len(word) - 1)])
    return added


def old_pieces(new: LoadedTokenizer, old: LoadedTokenizer) -> list[np.ndarray]:
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
    """Euclidean projection of each row onto the probability simplex, argmin_p |p - z|^2, float64 (n, m).

    References
    ----------
    A. F. T. Martins, R. F. Astudillo, "From softmax to sparsemax: a sparse model of attention and multi-label
    classification", ICML 2016.
    """
    ordered = -np.sort(-z, axis=1)
    sums = np.cumsum(ordered, axis=1) - 1
    steps = np.arange(1, z.shape[1] + 1)
    support = (ordered * steps > sums).sum(axis=1)
    threshold = sums[np.arange(len(z)), support - 1] / support
    return np.maximum(z - threshold[:, None], 0)


def overlap_rows(new: np.ndarray, old: np.ndarray, E: np.ndarray) -> np.ndarray:
    """Old rows weighted by sparsemax of the cosines of factors: sparsemax(cos(new, old)) E.

    Parameters
    ----------
    new : float array of shape (n, k)
        Factors of new tokens.
    old : float array of shape (m, k)
        Factors of frequent old tokens.
    E : float32 array of shape (m, d)
        Rows of those old tokens.

    Returns
    -------
    float32 array of shape (n, d)
    """
    rows = np.empty((len(new), E.shape[1]), np.float32)
    unit = old / np.maximum(np.linalg.norm(old, axis=1, keepdims=True), 1e-12)
    for begin in range(0, len(new), _CHUNK):
        part = new[begin : begin + _CHUNK]
        cosine = (part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12)) @ unit.T
        rows[begin : begin + _CHUNK] = sparsemax(cosine.astype(np.float64)) @ E
    return rows


def bias_from_counts(bias: np.ndarray, counts: np.ndarray, anchors: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Head bias a + g log(c + 1/2) of some counts, a and g by least squares over the anchors.

    Parameters
    ----------
    bias : float array of shape (V,)
        Of old tokens.
    counts : int64 array of shape (T,)
        Of old tokens.
    anchors : int64 array of shape (n,)
        Old tokens to fit on.
    wanted : int64 array of shape (m,)
        Counts of the new tokens.

    Returns
    -------
    float64 array of shape (m,)
    """
    logs = np.log(counts[anchors] + 0.5)
    design = np.stack([np.ones_like(logs), logs], axis=1)
    (a, g), *_ = np.linalg.lstsq(design, bias[anchors].astype(np.float64), rcond=None)
    return a + g * np.log(wanted + 0.5)
