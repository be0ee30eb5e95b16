"""The modes: what each does to the rows and the head bias, as arrays in, arrays out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wals_spark.config import InjectConfig
from wals_spark.errors import GateError
from wals_spark.inject import align, blend, frequency, fresh
from wals_spark.inject.gate import Fit, GateResult, fit_and_gate


@dataclass(frozen=True)
class Factors:
    """Vectors of the corpus' tokens, by token id.

    Attributes
    ----------
    matrix : float32 (T, k)
    counts : int64 (T,)
    """

    matrix: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class Change:
    """What a mode wants to change.

    Attributes
    ----------
    ids : int64 (n,)
        Rows that change, ascending.
    rows : float32 (n, d)
        Their new values.
    head_bias : float64 (V,) or None
        The whole new head bias; None = untouched.
    share : float32 (T,)
        b_i: share of each row that comes from the factors.
    map : dict of name -> array
        What turns factors into rows: W, mu_u, mu_e.
    facts : dict
        For injection.json: fit, variances.
    gate : GateResult or None
    """

    ids: np.ndarray
    rows: np.ndarray
    head_bias: np.ndarray | None
    share: np.ndarray
    map: dict[str, np.ndarray]
    facts: dict[str, Any] = field(default_factory=dict)
    gate: GateResult | None = None


def align_factors(factors: Factors, E: np.ndarray, protected: np.ndarray, config: InjectConfig, seed: int) -> Fit:
    """Fit the map on the anchors and let the gate decide.

    Raises
    ------
    GateError
        The gate refused and neither ``force`` nor ``gate: false`` is set.
    """
    counts = factors.counts
    anchors = np.setdiff1d(np.flatnonzero(counts >= config.anchor_min_count), protected)
    fit = fit_and_gate(
        factors.matrix,
        E[: len(counts)],
        counts,
        anchors,
        folds=config.folds,
        half=config.anchor_half_count,
        seed=seed,
        margin=config.gate_margin,
    )
    if config.gate and not fit.gate.passed and not config.force:
        raise GateError(
            f"inject: the gate refused, nothing was written: {fit.gate.reason}. A larger corpus or other factors may "
            "help; --set inject.force=true writes in spite of it and records that",
            details={"gate": fit.gate.to_json()},
        )
    return fit


def blend_or_replace(
    factors: Factors,
    E: np.ndarray,
    protected: np.ndarray,
    exposure: np.ndarray,
    config: InjectConfig,
    seed: int,
) -> Change:
    """Modes ``blend`` and ``replace``: aligned, norm-matched rows, mixed with the old ones or in their place.

    Parameters
    ----------
    factors : Factors
    E : float32 (V, d), V >= T
    protected : ids that never move
    exposure : float64 (T,)
        How often pretraining saw each token.
    """
    counts = factors.counts
    fit = align_factors(factors, E, protected, config, seed)
    P = fit.alignment.predict(factors.matrix)  # (T, d)
    profile = align.norm_profile(E[fit.anchors], fit.alignment.mu_e, exposure[fit.anchors])
    matched = align.match_norms(P, fit.alignment.mu_e, counts, profile)
    facts: dict[str, Any] = {
        "anchors": len(fit.anchors),
        "lambda0": fit.cv.best,
        "cross_validation": {"lambda0": list(fit.cv.grid), "error": fit.cv.error.tolist(), "total": fit.cv.total},
        "held_out_r2": fit.cv.r2,
    }
    if config.mode == "replace":
        share = np.where(counts > 0, 1.0, 0.0).astype(np.float32)
        share[protected[protected < len(share)]] = 0.0
    else:
        variances = fit_blend(fit, P, E, counts, exposure, protected, profile)
        share = blend.blend_shares(variances, exposure, counts, protected[protected < len(counts)], config.b_max)
        facts["variances"] = variances.to_json()
    ids = np.flatnonzero(share > 0)
    rows = blend.blend_rows(E[ids], matched[ids], share[ids])
    mapping = {"W": fit.alignment.W, "mu_u": fit.alignment.mu_u, "mu_e": fit.alignment.mu_e}
    return Change(ids, rows, None, share, mapping, facts, fit.gate)


def fit_blend(
    fit: Fit,
    P: np.ndarray,
    E: np.ndarray,
    counts: np.ndarray,
    exposure: np.ndarray,
    protected: np.ndarray,
    profile: tuple[np.ndarray, np.ndarray],
) -> blend.Variances:
    """Variances from rows that did not fit the map: anchors held out by fold, and all rarer tokens."""
    rare = np.setdiff1d(np.flatnonzero(counts > 0), np.union1d(fit.anchors, protected))
    tokens = np.concatenate([fit.anchors, rare])
    difference = np.concatenate([E[fit.anchors] - fit.held_out, E[rare] - P[rare]])
    at, rho = profile
    length = np.interp(np.log1p(exposure[tokens]), at, rho)
    relative = np.einsum("ij,ij->i", difference, difference) / np.maximum(length, 1e-12) ** 2
    return blend.fit_variances(relative, exposure[tokens], counts[tokens])


def with_head_bias(
    change: Change,
    bias: np.ndarray | None,
    counts: np.ndarray,
    exposure: np.ndarray,
    protected: np.ndarray,
    strength: float,
) -> Change:
    """The change with the head bias moved too; as it is where the strength is 0."""
    if strength == 0 or bias is None:
        return change
    size = len(counts)
    moved = bias.astype(np.float64)
    moved[:size] = frequency.moved_bias(
        bias[:size].astype(np.float64), counts, exposure, protected[protected < size], strength
    )
    return Change(**{**change.__dict__, "head_bias": moved})


def initial(factors: Factors, E: np.ndarray, bias_size: int, protected: np.ndarray, scale: float, seed: int) -> Change:
    """Mode ``init``: rows of a model about to be pretrained, and its head bias."""
    counts = factors.counts
    ids = np.setdiff1d(np.flatnonzero(counts > 0), protected)
    rows = fresh.initial_rows(factors.matrix[ids], counts[ids], E.shape[1], scale, seed)
    share = np.zeros(len(counts), np.float32)
    share[ids] = 1.0
    padded = np.zeros(bias_size, np.int64)
    padded[: len(counts)] = counts
    return Change(ids, rows, frequency.log_unigram(padded), share, {}, {"initializer_range": scale})
