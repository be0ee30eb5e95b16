"""The modes: what each does to the rows and the head bias, as arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from wals_spark.checkpoints import from_scratch
from wals_spark.checkpoints.edit import EmbeddingEdit, TokenFactors
from wals_spark.config import InjectConfig
from wals_spark.errors import GateError
from wals_spark.inject import align, blend, frequency
from wals_spark.inject.gate import AlignmentFit, FoldSums, fit_and_gate
from wals_spark.inject.vocabulary import extend

_CHUNK = 4096


def align_factors(
    factors: TokenFactors,
    E: np.ndarray,
    protected: np.ndarray,
    frequencies: TokenFrequencies,
    config: InjectConfig,
    seed: int,
    sums: FoldSums | None = None,
) -> AlignmentFit:
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
        E,
        counts,
        anchors,
        folds=config.folds,
        half=config.anchor_half_count,
        seed=seed,
        margin=config.gate_margin,
        method=config.alignment,
        whiten=config.whiten,
        sums=sums,
    )
    if config.gate and not fit.gate.passed and not config.force:
        raise GateError(
            f"inject: the gate refused, nothing was written: {fit.gate.reason}. A larger corpus or other factors may "
            "help; --set inject.force=true writes in spite of it and records that",
            details={"gate": fit.gate.to_json()},
        )
    return fit


@dataclass(frozen=True)
class TokenFrequencies:
    """How often each token was seen, float64 (T,) each.

    Attributes
    ----------
    exposure : n_i, by pretraining
    corpus : c_i, by the corpus (the domain, without text that is like the pretraining's)
    """

    exposure: np.ndarray
    corpus: np.ndarray

    def towards(self, goal: Literal["domain", "sum"]) -> TokenFrequencies:
        """With the domain's frequencies as they are, or those of pretraining's text and the domain together."""
        if goal == "sum":
            return TokenFrequencies(self.exposure, self.exposure + self.corpus)
        return self

    def without(self, counts: np.ndarray) -> TokenFrequencies:
        """With a sample's tokens taken out of the corpus."""
        return TokenFrequencies(self.exposure, np.maximum(self.corpus - counts, 0))


@dataclass(frozen=True)
class RowProposal:
    """Rows that the factors propose, before any strength is chosen; made a few thousand at a time when asked for.

    Attributes
    ----------
    fit : Fit
    U : float32 (T, k)
    stretch : float32 (T,)
        P_i = mu_e + stretch_i (u_i - mu_u) W: norms matched.
    variances : blend.Variances
    frequencies : Frequencies
    protected : int64 array, ids below T
    b_max : float
    delta : float32 (T, k) or None
        How the domain uses each token differently, `wals_spark.inject.domain_shift`; None = nothing shifts.
    shift_trust : float32 (T,) or None
        What a shift is multiplied with: the trust in the domain's count times the stretch.
    span : float64 (d, r) or None
        Orthonormal basis of the directions that the factors can express, W's row space: only the components of rows
        along it move. None = whole rows move.
    """

    fit: AlignmentFit
    U: np.ndarray
    stretch: np.ndarray
    variances: blend.Variances
    frequencies: TokenFrequencies
    protected: np.ndarray
    b_max: float
    delta: np.ndarray | None = None
    shift_trust: np.ndarray | None = None
    span: np.ndarray | None = None

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

    def predict(self, ids: np.ndarray) -> np.ndarray:
        """P of some tokens, float32 (n, d)."""
        centre = self.fit.alignment.mu_e.astype(np.float32)
        return centre + self.stretch[ids, None] * (self.fit.alignment.predict(self.U[ids]) - centre)

    def shifts(self, ids: np.ndarray) -> np.ndarray:
        """What a shift adds to some rows at strength 1, float32 (n, d)."""
        assert self.delta is not None
        assert self.shift_trust is not None
        return (self.delta[ids] @ self.fit.alignment.W.astype(np.float32)) * self.shift_trust[ids, None]

    def rows(
        self, E: np.ndarray, share: np.ndarray, *, shift: float = 0.0, take: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the rows that change and their new values.

        Parameters
        ----------
        E : float32 (V, d)
        share : (T,)
        shift : strength
        take : int64 (T,), optional
            Whose proposal each token takes, for controls; none = its own.
        """
        changes = share > 0
        trust = self.shift_trust if shift > 0 else None
        if trust is not None:
            changes = changes | (trust > 0)
        ids = np.flatnonzero(changes)
        rows = np.empty((len(ids), E.shape[1]), np.float32)
        for begin in range(0, len(ids), _CHUNK):
            part = slice(begin, begin + _CHUNK)
            some = ids[part]
            target = self.predict(some if take is None else take[some])
            if self.span is not None:
                target += blend.component_outside_span(E[some], self.fit.alignment.mu_e, self.span)
            rows[part] = blend.blend_rows(E[some], target, share[some])
            if trust is not None:
                rows[part] += np.float32(shift) * self.shifts(some)
        return ids, rows


def propose_rows(
    factors: TokenFactors,
    E: np.ndarray,
    protected: np.ndarray,
    frequencies: TokenFrequencies,
    config: InjectConfig,
    seed: int,
    delta: np.ndarray | None = None,
    sums: FoldSums | None = None,
) -> RowProposal:
    """Modes ``blend`` and ``replace``: align, gate, match norms, fit the variances.

    Parameters
    ----------
    factors : TokenFactors
    E : float32 (V, d), V >= T
    protected : ids that never move
    frequencies : Frequencies
    delta : float32 (T, k), optional
        How the domain uses each token differently, in the factors' space.
    sums : optional
        Accumulates the sums of the alignment elsewhere.

    Raises
    ------
    GateError, InputError
    """
    fit = align_factors(factors, E, protected, frequencies, config, seed, sums)
    alignment, U = fit.alignment, factors.matrix
    span = blend.span_basis(alignment.W) if config.span_only else None
    seen = align.log_share(frequencies.exposure)
    profile = align.norm_profile(_lengths(E, fit.anchors, alignment.mu_e, span), seen[fit.anchors])
    predicted = _predicted_lengths(alignment, U)
    stretch = align.norm_factors(predicted, align.log_share(factors.counts), profile)
    length = np.interp(seen, *profile)
    variances = _fit_variances(fit, U, E, frequencies, protected, length, span)
    inside = protected[protected < len(factors.counts)]
    trust = None
    if delta is not None:
        trust = (blend.trust(frequencies.corpus, variances.half_count) * stretch).astype(np.float32)
        trust[inside] = 0.0
        trust[~delta.any(axis=1)] = 0.0
    return RowProposal(fit, U, stretch, variances, frequencies, inside, config.b_max, delta, trust, span)


def _lengths(E: np.ndarray, ids: np.ndarray, centre: np.ndarray, span: np.ndarray | None) -> np.ndarray:
    """|e_i - centre| of some rows, within the span where one is given; float64 (n,)."""
    found = np.empty(len(ids))
    for begin in range(0, len(ids), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        rows = E[ids[part]] - centre
        found[part] = np.linalg.norm(rows if span is None else rows @ span, axis=1)
    return found


def _predicted_lengths(alignment: align.Alignment, U: np.ndarray) -> np.ndarray:
    """|P_i - mu_e| before norms are matched, float64 (T,)."""
    found = np.empty(len(U))
    for begin in range(0, len(U), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        found[part] = np.linalg.norm((U[part] - alignment.mu_u) @ alignment.W, axis=1)
    return found


def permutation(counts: np.ndarray, seed: int) -> np.ndarray:
    """Tokens shuffled among those of similar frequency, int64 (T,): the control of every mode."""
    return align.permute_within(align.deciles(counts), seed)


def _fit_variances(
    fit: AlignmentFit,
    U: np.ndarray,
    E: np.ndarray,
    frequencies: TokenFrequencies,
    protected: np.ndarray,
    length: np.ndarray,
    span: np.ndarray | None,
) -> blend.Variances:
    """Of rows that did not fit the map: anchors held out by fold, and all rarer tokens; `length` is rho (T,).

    What lies outside the span is no error of a row whose component there stays.
    """
    rare = np.setdiff1d(np.flatnonzero(frequencies.corpus > 0), np.union1d(fit.anchors, protected))
    tokens = np.concatenate([fit.anchors, rare])
    error = np.empty(len(tokens))
    error[: len(fit.anchors)] = fit.held_out_error
    for begin in range(0, len(rare), _CHUNK):
        some = rare[begin : begin + _CHUNK]
        place = len(fit.anchors) + begin
        error[place : place + len(some)] = ((E[some] - fit.alignment.predict(U[some])) ** 2).sum(axis=1)
    if span is not None:
        for begin in range(0, len(tokens), _CHUNK):
            some = tokens[begin : begin + _CHUNK]
            left = blend.component_outside_span(E[some], fit.alignment.mu_e, span)
            error[begin : begin + len(some)] -= (left**2).sum(axis=1)
    relative = np.maximum(error, 0) / np.maximum(length[tokens], 1e-12) ** 2
    return blend.fit_variances(relative, frequencies.exposure[tokens], frequencies.corpus[tokens])


def adjusted_head_bias(
    bias: np.ndarray, frequencies: TokenFrequencies, protected: np.ndarray, strength: float
) -> np.ndarray:
    """The head bias moved from pretraining's log unigram frequency towards the corpus', float64 (V,)."""
    size = len(frequencies.corpus)
    moved = bias.astype(np.float64)
    moved[:size] = frequency.adjusted_bias(
        moved[:size], frequencies.corpus, frequencies.exposure, protected[protected < size], strength
    )
    return moved


def edit_of_proposal(
    proposal: RowProposal,
    E: np.ndarray,
    share: np.ndarray,
    head_bias: np.ndarray | None,
    facts: dict[str, Any],
    shift: float = 0.0,
) -> EmbeddingEdit:
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
    return EmbeddingEdit(ids, rows, head_bias, share, mapping, facts, fit.gate.to_json())


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
    E : float32 (V, d)
    bias : (V,) or None
    pieces : old ids of each new token's text
    protected : ids
    origin : int64 (V',)
        See `EmbeddingEdit`.

    Notes
    -----
    A new token that the corpus does not hold (it is only on the way to a longer one) gets the mean of its
    pieces whatever the method.
    """
    ids = np.arange(len(factors.counts) - len(pieces), len(factors.counts))
    old = len(ids) and int(ids[0])
    counts = factors.counts
    known = TokenFactors(factors.matrix[:old], counts[:old])
    rows = extend.mean_of_pieces(E[:old], pieces)
    facts: dict[str, Any] = {"new_tokens": len(ids), "rows_from": config.extend_rows}
    mapping: dict[str, np.ndarray] = {}
    gate: Mapping[str, Any] | None = None
    seen = counts[ids] > 0
    anchors = np.setdiff1d(np.flatnonzero(known.counts >= config.anchor_min_count), protected)
    if config.extend_rows == "factors":
        same = TokenFrequencies(known.counts.astype(np.float64), known.counts.astype(np.float64))
        fit = align_factors(known, E, protected, same, config, seed)
        shares = align.log_share(counts)
        profile = align.norm_profile(_lengths(E, fit.anchors, fit.alignment.mu_e, None), shares[fit.anchors])
        centre = fit.alignment.mu_e.astype(np.float32)
        away = fit.alignment.predict(factors.matrix[ids[seen]]) - centre
        stretch = align.norm_factors(np.linalg.norm(away, axis=1), shares[ids[seen]], profile)
        rows[seen] = centre + stretch[:, None] * away
        mapping = {"W": fit.alignment.W, "mu_u": fit.alignment.mu_u, "mu_e": fit.alignment.mu_e}
        facts["held_out_r2"], gate = fit.cv.r2, fit.gate.to_json()
    elif config.extend_rows == "mean":
        rows[:] = E[:old].mean(axis=0)
    elif config.extend_rows == "overlap":
        rows[seen] = extend.overlap_rows(factors.matrix[ids][seen], known.matrix[anchors], E[anchors])
    moved = None
    if bias is not None:
        moved = np.where(origin >= 0, bias[np.maximum(origin, 0)], 0.0).astype(np.float64)
        moved[ids] = extend.bias_from_counts(bias, known.counts, anchors, counts[ids])
    share = np.zeros(len(counts), np.float32)
    share[ids] = 1.0
    return EmbeddingEdit(ids, rows, moved, share, mapping, facts, gate, origin)


def initial_edit(
    factors: TokenFactors, E: np.ndarray, bias_size: int, protected: np.ndarray, scale: float, seed: int
) -> EmbeddingEdit:
    """Mode ``init``: rows of a model about to be pretrained, and its head bias."""
    counts = factors.counts
    ids = np.setdiff1d(np.flatnonzero(counts > 0), protected)
    rows = from_scratch.initial_rows(factors.matrix[ids], counts[ids], E.shape[1], scale, seed)
    share = np.zeros(len(counts), np.float32)
    share[ids] = 1.0
    padded = np.zeros(bias_size, np.int64)
    padded[: len(counts)] = counts
    return EmbeddingEdit(ids, rows, frequency.log_unigram(padded), share, {}, {"initializer_range": scale})
