r"""Rows and head bias of a tokenizer's new tokens, from the rows of the tokens that the old one has too.

Every new row is a combination of anchors' rows, e_i = sum_j a_ij E_j, the anchors being shared tokens that the corpus
has often enough. Coefficients a_i live in the space of factors counted with the new tokenizer:

- ``factors``: ridge regression, in `wals_spark.inject.transfer`;
- ``focus``: a_i = sparsemax_j(cos(u_i, u_j)), FOCUS with factors in place of its fastText vectors;
- ``omp``: u_i ~ sum_j a_ij u_j by orthogonal matching pursuit, tokensurgeon's method with factors in place of the
  rows of another model.

Baselines without factors: ``mean`` of all old rows, ``subtokens`` (mean of the rows of a token's old pieces, fast
vocabulary transfer), ``random`` (normal, with the mean and the variances of the old rows).

References
----------
K. Dobler, G. de Melo, "FOCUS: effective embedding initialization for monolingual specialization of multilingual
models", EMNLP 2023.

C. Goddard, F. Fernandes Neto, "Training-free tokenizer transplantation via orthogonal matching pursuit",
arXiv 2506.06607, 2025.

L. Gee, A. Zugarini, L. Rigutini, P. Torroni, "Fast vocabulary transfer for language model compression", EMNLP 2022.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wals_spark.inject.vocabulary.extend import mean_of_pieces, overlap_rows
from wals_spark.inject.vocabulary.matching_pursuit import matching_pursuit
from wals_spark.inject.vocabulary.tokenizer_json import token_ids, tokenizer_model_type
from wals_spark.tokenizer import LoadedTokenizer

PURSUIT_ATOMS = 64
"""Anchors of a combination of ``omp``, as in tokensurgeon."""


def pieces_in_old_vocabulary(
    tokens: Sequence[str], loaded: LoadedTokenizer, tokenizer: Mapping[str, Any]
) -> list[np.ndarray]:
    """Old ids of the pieces of each new token string, by the old tokenizer's model.

    Parameters
    ----------
    tokens : sequence of str
        Strings of the old tokenizer's convention.
    loaded : LoadedTokenizer
        The old tokenizer.
    tokenizer : dict of str to object
        Its tokenizer.json.

    Returns
    -------
    list of int64 array
        Empty where the old vocabulary lacks a part of the string.
    """
    known = token_ids(tokenizer)
    unknown = known.get(str(tokenizer["model"].get("unk_token")))
    if tokenizer_model_type(tokenizer) == "WordPiece":
        prefix = tokenizer["model"].get("continuing_subword_prefix", "##")
        return [_longest_pieces(token, known, prefix) for token in tokens]
    found = [[piece.id for piece in loaded.tokenizer.model.tokenize(token)] if token else [] for token in tokens]
    return [np.array(ids if unknown not in ids else [], np.int64) for ids in found]


def _longest_pieces(token: str, known: Mapping[str, int], prefix: str) -> np.ndarray:
    """The longest old pieces that make up a WordPiece token, from its left."""
    mark, text, found = "", token, []
    if prefix and token.startswith(prefix) and token != prefix:
        mark, text = prefix, token.removeprefix(prefix)
    while text:
        end = next((end for end in range(len(text), 0, -1) if mark + text[:end] in known), 0)
        if end == 0:
            return np.zeros(0, np.int64)
        found.append(known[mark + text[:end]])
        mark, text = prefix, text[end:]
    return np.array(found, np.int64)


def random_rows(E: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Normal rows with the mean and the variance of each column of E (V, d), float32 (count, d)."""
    generator = np.random.default_rng([seed, 23])
    drawn = generator.standard_normal((count, E.shape[1]))
    return (E.mean(axis=0, dtype=np.float64) + E.std(axis=0, dtype=np.float64) * drawn).astype(np.float32)


def combined_rows(
    how: str,
    factors: np.ndarray,
    ids: np.ndarray,
    anchors: np.ndarray,
    rows: np.ndarray,
) -> np.ndarray:
    """Rows of new tokens as sparse combinations of anchors' rows.

    Parameters
    ----------
    how : {"focus", "omp"}
    factors : float array of shape (T', k)
        Of all tokens of the new tokenizer.
    ids : int64 array of shape (n,)
        New tokens.
    anchors : int64 array of shape (m,)
        Shared tokens, new ids.
    rows : float32 array of shape (m, d)
        The anchors' rows.

    Returns
    -------
    float32 array of shape (n, d)
    """
    if how == "focus":
        return overlap_rows(factors[ids], factors[anchors], rows)
    return matching_pursuit(factors[ids], factors[anchors], PURSUIT_ATOMS).of_rows(rows)


def row_baseline(how: str, E: np.ndarray, pieces: Sequence[np.ndarray], seed: int) -> np.ndarray:
    """Rows of new tokens without factors.

    Parameters
    ----------
    how : {"mean", "subtokens", "random"}
    E : float32 array of shape (V, d)
        Rows of the old vocabulary.
    pieces : sequence of int64 array
        Old ids of each new token's string.
    seed : int
        Of ``random``.

    Returns
    -------
    float32 array of shape (n, d)
    """
    if how == "random":
        return random_rows(E, len(pieces), seed)
    if how == "mean":
        return np.repeat(E.mean(axis=0, keepdims=True), len(pieces), axis=0)
    return mean_of_pieces(E, pieces)
