"""The modes: what each does to the rows and the head bias, as arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wals_spark.config import InjectConfig
from wals_spark.errors import GateError
from wals_spark.inject import align, blend, extend, frequency, fresh
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
    origin : int64 (V',) or None
        The base's row that each row of the result comes from, -1 for a new one; None = the same rows. `ids`
        and `head_bias` are those of the result.
    """

    ids: np.ndarray
    rows: np.ndarray
    head_bias: np.ndarray | None
    share: np.ndarray
    map: dict[str, np.ndarray]
    facts: dict[str, Any] = field(default_factory=dict)
    gate: GateResult | None = None
    origin: np.ndarray | None = None


def align_factors(
    factors: Factors, E: np.ndarray, protected: np.ndarray, frequencies: Frequencies, config: InjectConfig, seed: int
) -> Fit:
    """Fit the map on the anchors and let the gate decide.

    Anchors are tokens that both the factors and, where its text was counted, pretraining know well.

    Raises
    ------
    GateError
        The gate refused and neither ``force`` nor ``gate: false`` is set.
    """
    counts = factors.counts
    known = np.minimum(counts, frequencies.exposure) if config.general_batches else counts
    anchors = np.setdiff1d(np.flatnonzero(known >= config.anchor_min_count), protected)
    fit = fit_and_gate(
        factors.matrix,
        E[: len(counts)],
        counts,
        anchors,
        folds=config.folds,
        half=config.anchor_half_count,
        seed=seed,
        margin=config.gate_margin,
        method=config.alignment,
        whiten=config.whiten,
    )
    if config.gate and not fit.gate.passed and not config.force:
        raise GateError(
            f"inject: the gate refused, nothing was written: {fit.gate.reason}. A larger corpus or other factors may "
            "help; --set inject.force=true writes in spite of it and records that",
            details={"gate": fit.gate.to_json()},
        )
    return fit


@dataclass(frozen=True)
class Frequencies:
    """How often each token was seen, float64 (T,) each.

    Attributes
    ----------
    exposure : n_i, by pretraining
    corpus : c_i, by the corpus (the domain, without text that is like the pretraining's)
    """

    exposure: np.ndarray
    corpus: np.ndarray

    def towards(self, target: str) -> Frequencies:
        """With the domain's frequencies as they are, or those of pretraining's text and the domain together."""
        if target == "sum":
            return Frequencies(self.exposure, self.exposure + self.corpus)
        return self

    def without(self, counts: np.ndarray) -> Frequencies:
        """With a sample's tokens taken out of the corpus."""
        return Frequencies(self.exposure, np.maximum(self.corpus - counts, 0))


@dataclass(frozen=True)
class Proposal:
    """Rows that the factors propose, before any strength is chosen.

    Attributes
    ----------
    fit : Fit
    P : float32 (T, d)
        Aligned, norm-matched rows.
    variances : blend.Variances
    frequencies : Frequencies
    protected : int64 array, ids below T
    b_max : float
    shift : float32 (T, d) or None
        What `wals_spark.inject.shift` adds at strength 1; None = nothing.
    """

    fit: Fit
    P: np.ndarray
    variances: blend.Variances
    frequencies: Frequencies
    protected: np.ndarray
    b_max: float
    shift: np.ndarray | None = None

    def shares(self, half_exposure: float) -> np.ndarray:
        """b_i for a given h."""
        return blend.blend_shares(
            half_exposure,
            self.variances.half_count,
            self.frequencies.exposure,
            self.frequencies.corpus,
            self.protected,
            self.b_max,
        )

    def everything(self) -> np.ndarray:
        """1 for every token that the factors know and that is not protected: what `replace` takes."""
        share = (self.frequencies.corpus > 0).astype(np.float32)
        share[self.protected] = 0.0
        return share

    def rows(
        self, E: np.ndarray, share: np.ndarray, *, P: np.ndarray | None = None, shift: float = 0.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the rows that change and their new values; `P` stands in for the proposal's own rows."""
        changes = share > 0
        if shift > 0 and self.shift is not None:
            changes = changes | self.shift.any(axis=1)
        ids = np.flatnonzero(changes)
        rows = blend.blend_rows(E[ids], (self.P if P is None else P)[ids], share[ids])
        if shift > 0 and self.shift is not None:
            rows = rows + np.float32(shift) * self.shift[ids]
        return ids, rows


def propose(
    factors: Factors,
    E: np.ndarray,
    protected: np.ndarray,
    frequencies: Frequencies,
    config: InjectConfig,
    seed: int,
    delta: np.ndarray | None = None,
) -> Proposal:
    """Modes ``blend`` and ``replace``: align, gate, match norms, fit the variances.

    Parameters
    ----------
    factors : Factors
    E : float32 (V, d), V >= T
    protected : ids that never move
    frequencies : Frequencies
    delta : float32 (T, k), optional
        How the domain uses each token differently, in the factors' space.

    Raises
    ------
    GateError, InputError
    """
    fit = align_factors(factors, E, protected, frequencies, config, seed)
    predicted = fit.alignment.predict(factors.matrix)  # (T, d)
    seen = align.log_share(frequencies.exposure)
    profile = align.norm_profile(E[fit.anchors], fit.alignment.mu_e, seen[fit.anchors])
    matched = align.match_norms(predicted, fit.alignment.mu_e, align.log_share(factors.counts), profile)
    variances = _fit_variances(fit, predicted, E, frequencies, protected, np.interp(seen, *profile))
    inside = protected[protected < len(factors.counts)]
    shift = None
    if delta is not None:
        centre = fit.alignment.mu_e.astype(np.float32)
        stretch = np.linalg.norm(matched - centre, axis=1) / np.maximum(
            np.linalg.norm(predicted - centre, axis=1), 1e-12
        )
        trusted = blend.trust(frequencies.corpus, variances.half_count) * stretch
        trusted[inside] = 0.0
        shift = (delta @ fit.alignment.W.astype(np.float32)) * trusted[:, None].astype(np.float32)
    return Proposal(fit, matched, variances, frequencies, inside, config.b_max, shift)


def permuted(proposal: Proposal, counts: np.ndarray, seed: int) -> np.ndarray:
    """The proposal's rows shuffled among tokens of similar frequency: the control of every mode."""
    return proposal.P[align.permute_within(align.deciles(counts), seed)]


def _fit_variances(
    fit: Fit,
    P: np.ndarray,
    E: np.ndarray,
    frequencies: Frequencies,
    protected: np.ndarray,
    length: np.ndarray,
) -> blend.Variances:
    """Of rows that did not fit the map: anchors held out by fold, and all rarer tokens; `length` is rho (T,)."""
    rare = np.setdiff1d(np.flatnonzero(frequencies.corpus > 0), np.union1d(fit.anchors, protected))
    tokens = np.concatenate([fit.anchors, rare])
    difference = np.concatenate([E[fit.anchors] - fit.held_out, E[rare] - P[rare]])
    relative = np.einsum("ij,ij->i", difference, difference) / np.maximum(length[tokens], 1e-12) ** 2
    return blend.fit_variances(relative, frequencies.exposure[tokens], frequencies.corpus[tokens])


def moved_head_bias(bias: np.ndarray, frequencies: Frequencies, protected: np.ndarray, strength: float) -> np.ndarray:
    """The head bias moved from pretraining's log unigram frequency towards the corpus', float64 (V,)."""
    size = len(frequencies.corpus)
    moved = bias.astype(np.float64)
    moved[:size] = frequency.moved_bias(
        moved[:size], frequencies.corpus, frequencies.exposure, protected[protected < size], strength
    )
    return moved


def change_of(
    proposal: Proposal,
    E: np.ndarray,
    share: np.ndarray,
    head_bias: np.ndarray | None,
    facts: dict[str, Any],
    shift: float = 0.0,
) -> Change:
    """The proposal at chosen strengths."""
    fit = proposal.fit
    ids, rows = proposal.rows(E, share, shift=shift)
    facts = {
        "anchors": len(fit.anchors),
        "lambda0": fit.cv.best,
        "cross_validation": {"lambda0": list(fit.cv.grid), "error": fit.cv.error.tolist(), "total": fit.cv.total},
        "held_out_r2": fit.cv.r2,
        "variances": proposal.variances.to_json(),
        **facts,
    }
    mapping = {"W": fit.alignment.W, "mu_u": fit.alignment.mu_u, "mu_e": fit.alignment.mu_e}
    return Change(ids, rows, head_bias, share, mapping, facts, fit.gate)


def extended(
    factors: Factors,
    E: np.ndarray,
    bias: np.ndarray | None,
    pieces: Sequence[np.ndarray],
    protected: np.ndarray,
    origin: np.ndarray,
    config: InjectConfig,
    seed: int,
) -> Change:
    """Mode ``extend``: rows and head bias of new tokens; old rows stay.

    Parameters
    ----------
    factors : Factors
        Of old and new tokens, T' rows.
    E : float32 (V, d)
    bias : (V,) or None
    pieces : old ids of each new token's text
    protected : ids
    origin : int64 (V',)
        See `Change`.

    Notes
    -----
    A new token that the corpus does not hold (it is only on the way to a longer one) gets the mean of its
    pieces whatever the method.
    """
    ids = np.arange(len(factors.counts) - len(pieces), len(factors.counts))
    old = len(ids) and int(ids[0])
    counts = factors.counts
    known = Factors(factors.matrix[:old], counts[:old])
    rows = extend.mean_of_pieces(E[:old], pieces)
    facts: dict[str, Any] = {"new_tokens": len(ids), "rows_from": config.extend_rows}
    mapping: dict[str, np.ndarray] = {}
    gate = None
    seen = counts[ids] > 0
    anchors = np.setdiff1d(np.flatnonzero(known.counts >= config.anchor_min_count), protected)
    if config.extend_rows == "factors":
        same = Frequencies(known.counts.astype(np.float64), known.counts.astype(np.float64))
        fit = align_factors(known, E, protected, same, config, seed)
        shares = align.log_share(counts)
        profile = align.norm_profile(E[fit.anchors], fit.alignment.mu_e, shares[fit.anchors])
        predicted = fit.alignment.predict(factors.matrix[ids])
        matched = align.match_norms(predicted, fit.alignment.mu_e, shares[ids], profile)
        rows[seen] = matched[seen]
        mapping = {"W": fit.alignment.W, "mu_u": fit.alignment.mu_u, "mu_e": fit.alignment.mu_e}
        facts["held_out_r2"], gate = fit.cv.r2, fit.gate
    elif config.extend_rows == "mean":
        rows[:] = E[:old].mean(axis=0)
    elif config.extend_rows == "overlap":
        rows[seen] = extend.overlap_rows(factors.matrix[ids][seen], known.matrix[anchors], E[anchors])
    moved = None
    if bias is not None:
        moved = np.where(origin >= 0, bias[np.maximum(origin, 0)], 0.0).astype(np.float64)
        moved[ids] = extend.fitted_bias(bias, known.counts, anchors, counts[ids])
    share = np.zeros(len(counts), np.float32)
    share[ids] = 1.0
    return Change(ids, rows, moved, share, mapping, facts, gate, origin)


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
