"""The modes ``extend`` and ``init``: rows and head bias of new tokens, and of a model about to be pretrained.

``blend`` and ``replace`` are one proposal at different shares (`wals_spark.inject.proposal`); ``trim`` changes no row
(`wals_spark.inject.vocabulary.trim`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wals_spark.checkpoints.edit import EmbeddingEdit, TokenFactors
from wals_spark.config import InjectConfig
from wals_spark.inject import align, frequency
from wals_spark.inject.gate import AlignmentFit
from wals_spark.inject.initial_rows import initial_embedding_rows
from wals_spark.inject.proposal import TokenFrequencies, align_factors, centred_norms
from wals_spark.inject.vocabulary import extend


def extension_edit(
    factors: TokenFactors,
    E: np.ndarray,
    bias: np.ndarray | None,
    pieces: Sequence[np.ndarray],
    protected: np.ndarray,
    origin: np.ndarray,
    config: InjectConfig,
    seed: int,
) -> EmbeddingEdit:
    """Mode ``extend``: rows and head bias of new tokens; old rows stay.

    Parameters
    ----------
    factors : TokenFactors
        Of old and new tokens, T' rows.
    E : float32 array of shape (V, d)
    bias : float array of shape (V,) or None
    pieces : sequence of int64 array
        Old ids of each new token's text.
    protected : int64 array of shape (p,)
        Ids that are no anchors.
    origin : int64 array of shape (V',)
        See `EmbeddingEdit`.
    config : InjectConfig
    seed : int

    Returns
    -------
    EmbeddingEdit

    Raises
    ------
    GateError, InputError
        See `wals_spark.inject.proposal.align_factors`; with ``extend_rows: factors`` only.

    Notes
    -----
    A new token that the corpus does not hold, since it is only on the way to a longer one, gets the mean of its pieces
    whatever ``extend_rows`` is.
    """
    counts = factors.counts
    old = len(counts) - len(pieces)
    ids = np.arange(old, len(counts))
    anchors = np.setdiff1d(np.flatnonzero(counts[:old] >= config.anchor_min_count), protected)
    rows, fit = _rows_of_new_tokens(factors, E, pieces, protected, anchors, config, seed)
    facts: dict[str, Any] = {"new_tokens": len(ids), "rows_from": config.extend_rows}
    mapping: dict[str, np.ndarray] = {}
    gate: Mapping[str, Any] | None = None
    if fit is not None:
        mapping = {"W": fit.alignment.W, "mu_u": fit.alignment.mu_u, "mu_e": fit.alignment.mu_e}
        facts["held_out_r2"], gate = fit.cv.r2, fit.gate.to_json()
    moved = None
    if bias is not None:
        moved = np.where(origin >= 0, bias[np.maximum(origin, 0)], 0.0).astype(np.float64)
        moved[ids] = extend.bias_from_counts(bias, counts[:old], anchors, counts[ids])
    share = np.zeros(len(counts), np.float32)
    share[ids] = 1.0
    return EmbeddingEdit(ids, rows, moved, share, mapping, facts, gate, origin)


def _rows_of_new_tokens(
    factors: TokenFactors,
    E: np.ndarray,
    pieces: Sequence[np.ndarray],
    protected: np.ndarray,
    anchors: np.ndarray,
    config: InjectConfig,
    seed: int,
) -> tuple[np.ndarray, AlignmentFit | None]:
    """The rows that ``extend_rows`` names, float32 (n, d), and the alignment that they come from, if any."""
    counts = factors.counts
    old = len(counts) - len(pieces)
    known = TokenFactors(factors.matrix[:old], counts[:old])
    seen = old + np.flatnonzero(counts[old:] > 0)
    rows = extend.mean_of_pieces(E[:old], pieces)
    if config.extend_rows == "factors":
        same = TokenFrequencies(known.counts.astype(np.float64), known.counts.astype(np.float64))
        fit = align_factors(known, E, protected, same, config, seed)
        rows[seen - old] = aligned_rows(fit, factors, E, seen)
        return rows, fit
    if config.extend_rows == "mean":
        rows[:] = E[:old].mean(axis=0)
    elif config.extend_rows == "overlap":
        rows[seen - old] = extend.overlap_rows(factors.matrix[seen], known.matrix[anchors], E[anchors])
    return rows, None


def aligned_rows(fit: AlignmentFit, factors: TokenFactors, E: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """P of some tokens with norms matched to those of old tokens of their frequency.

    Parameters
    ----------
    fit : AlignmentFit
    factors : TokenFactors
    E : float32 array of shape (V, d)
        Rows of the anchors at least.
    ids : int64 array of shape (n,)

    Returns
    -------
    float32 array of shape (n, d)
    """
    shares = align.log_share(factors.counts)
    profile = align.norm_profile(centred_norms(E, fit.anchors, fit.alignment.mu_e), shares[fit.anchors])
    centre = fit.alignment.mu_e.astype(np.float32)
    away = fit.alignment.predict(factors.matrix[ids]) - centre
    stretch = align.norm_factors(np.linalg.norm(away, axis=1), shares[ids], profile)
    return centre + stretch[:, None] * away


def initial_edit(
    factors: TokenFactors, E: np.ndarray, bias_size: int, protected: np.ndarray, scale: float, seed: int
) -> EmbeddingEdit:
    """Mode ``init``: rows of a model about to be pretrained, and its head bias.

    Parameters
    ----------
    factors : TokenFactors
    E : float32 array of shape (V, d)
        As the model's class initialises it.
    bias_size : int
        Entries of the head bias.
    protected : int64 array of shape (p,)
        Ids whose rows stay.
    scale : float
        Root mean square entry of the rows, the config's ``initializer_range``.
    seed : int
        Of the rotation.

    Returns
    -------
    EmbeddingEdit

    Raises
    ------
    InputError
        All factors are equal.
    """
    counts = factors.counts
    ids = np.setdiff1d(np.flatnonzero(counts > 0), protected)
    rows = initial_embedding_rows(factors.matrix[ids], counts[ids], E.shape[1], scale, seed)
    share = np.zeros(len(counts), np.float32)
    share[ids] = 1.0
    padded = np.zeros(bias_size, np.int64)
    padded[: len(counts)] = counts
    return EmbeddingEdit(ids, rows, frequency.log_unigram(padded), share, {}, {"initializer_range": scale})
