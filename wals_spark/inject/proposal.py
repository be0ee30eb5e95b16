r"""The rows that factors propose, before any strength is chosen.

::

    P_i   = mu_e + s_i (u_i - mu_u) W                s_i: norms matched
    E'_i  = (1 - b_i) E_i + b_i P_i + shift t_i delta_i W

b_i are the shares of `wals_spark.inject.blend` for a given h (mode ``blend``), or 1 for every token that the corpus has
(mode ``replace``); delta_i W is the shift of `wals_spark.inject.domain_shift` and t_i its trust, c_i / (c_i + h_c) s_i.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from wals_spark.checkpoints.edit import EmbeddingEdit, TokenFactors
from wals_spark.config import InjectConfig
from wals_spark.errors import GateError
from wals_spark.inject import align, blend, frequency
from wals_spark.inject.gate import AlignmentFit, FoldSums, fit_and_gate

_CHUNK = 4096


@dataclass(frozen=True)
class TokenFrequencies:
    """How often each of T tokens was seen.

    Attributes
    ----------
    exposure : float64 array of shape (T,)
        n_i, by pretraining.
    corpus : float64 array of shape (T,)
        c_i, by the corpus: the domain, without text that is like the pretraining's.
    """

    exposure: np.ndarray
    corpus: np.ndarray

    def towards(self, goal: Literal["domain", "sum"]) -> TokenFrequencies:
        """With the domain's frequencies as they are, or those of pretraining's text and the domain together."""
        if goal == "sum":
            return TokenFrequencies(self.exposure, self.exposure + self.corpus)
        return self

    def without(self, counts: np.ndarray) -> TokenFrequencies:
        """With a sample's tokens, int64 (T,), taken out of the corpus."""
        return TokenFrequencies(self.exposure, np.maximum(self.corpus - counts, 0))


def align_factors(
    factors: TokenFactors,
    E: np.ndarray,
    protected: np.ndarray,
    frequencies: TokenFrequencies,
    config: InjectConfig,
    seed: int,
    sums: FoldSums | None = None,
) -> AlignmentFit:
    """Fit the map from factors to rows on the anchors, and let the gate decide.

    Anchors are tokens of at least ``anchor_min_count`` in the corpus and, where its text was counted, in pretraining.

    Parameters
    ----------
    factors : TokenFactors
        Of T <= V tokens.
    E : float32 array of shape (V, d)
    protected : int64 array of shape (p,)
        Ids that are no anchors.
    frequencies : TokenFrequencies
    config : InjectConfig
    seed : int
    sums : callable, optional
        Accumulates the sums of the alignment elsewhere.

    Returns
    -------
    AlignmentFit

    Raises
    ------
    GateError
        The gate refused and neither ``force`` nor ``gate: false`` is set.
    InputError
        There are too few anchors.
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
class RowProposal:
    """Rows that the factors propose, computed a few thousand at a time when asked for.

    Attributes
    ----------
    fit : AlignmentFit
    U : float32 array of shape (T, k)
    stretch : float32 array of shape (T,)
        s_i, which matches norms: P_i = mu_e + s_i (u_i - mu_u) W.
    variances : Variances
    frequencies : TokenFrequencies
    protected : int64 array of shape (p,)
        Ids below T that never change.
    b_max : float
    delta : float32 array of shape (T, k) or None
        The difference of two fold-ins of each token (`wals_spark.inject.domain_shift`); None = nothing shifts.
    shift_trust : float32 array of shape (T,) or None
        t_i, the factor of a shift: the trust in the domain's count times s_i.
    span : float64 array of shape (d, r) or None
        Orthonormal basis Q of W's row space, the directions that the factors can express: only the components of rows
        along it change. None = whole rows change.
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
        """b_i for a given h, float32 (T,)."""
        return blend.blend_shares(
            half_exposure,
            self.variances.half_count,
            self.frequencies.exposure,
            self.frequencies.corpus,
            self.protected,
            self.b_max,
        )

    def full_shares(self) -> np.ndarray:
        """The shares of ``replace``, float32 (T,): 1 for every token of the corpus that is not protected, else 0."""
        share = (self.frequencies.corpus > 0).astype(np.float32)
        share[self.protected] = 0.0
        return share

    def predict(self, ids: np.ndarray) -> np.ndarray:
        """P of some tokens, float32 (n, d)."""
        centre = self.fit.alignment.mu_e.astype(np.float32)
        return centre + self.stretch[ids, None] * (self.fit.alignment.predict(self.U[ids]) - centre)

    def shifts(self, ids: np.ndarray) -> np.ndarray:
        """t_i delta_i W of some tokens, float32 (n, d)."""
        assert self.delta is not None
        assert self.shift_trust is not None
        return (self.delta[ids] @ self.fit.alignment.W.astype(np.float32)) * self.shift_trust[ids, None]

    def rows(
        self, E: np.ndarray, share: np.ndarray, *, shift: float = 0.0, take: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Compute E' for the rows that change.

        Parameters
        ----------
        E : float32 array of shape (V, d)
        share : float32 array of shape (T,)
            b_i.
        shift : float
            Its strength.
        take : int64 array of shape (T,), optional
            Token whose P each token takes, for controls; none = its own.

        Returns
        -------
        ids : int64 array of shape (n,)
            Rows that change, ascending.
        rows : float32 array of shape (n, d)
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
    """Align, gate, match norms and fit the variances, for the modes ``blend`` and ``replace``.

    Parameters
    ----------
    factors : TokenFactors
        Of T tokens.
    E : float32 array of shape (V, d)
        V >= T.
    protected : int64 array of shape (p,)
        Ids that never change.
    frequencies : TokenFrequencies
    config : InjectConfig
    seed : int
    delta : float32 array of shape (T, k), optional
        The difference of two fold-ins of each token, for a shift.
    sums : callable, optional
        Accumulates the sums of the alignment elsewhere.

    Returns
    -------
    RowProposal

    Raises
    ------
    GateError, InputError
        See `align_factors`.
    """
    fit = align_factors(factors, E, protected, frequencies, config, seed, sums)
    alignment, U = fit.alignment, factors.matrix
    span = blend.span_basis(alignment.W) if config.span_only else None
    seen = align.log_share(frequencies.exposure)
    profile = align.norm_profile(centred_norms(E, fit.anchors, alignment.mu_e, span), seen[fit.anchors])
    stretch = align.norm_factors(_predicted_norms(alignment, U), align.log_share(factors.counts), profile)
    rho = np.interp(seen, *profile)
    variances = _fit_variances(fit, U, E, frequencies, protected, rho, span)
    inside = protected[protected < len(factors.counts)]
    trust = None
    if delta is not None:
        trust = (blend.trust(frequencies.corpus, variances.half_count) * stretch).astype(np.float32)
        trust[inside] = 0.0
        trust[~delta.any(axis=1)] = 0.0
    return RowProposal(fit, U, stretch, variances, frequencies, inside, config.b_max, delta, trust, span)


def centred_norms(E: np.ndarray, ids: np.ndarray, centre: np.ndarray, span: np.ndarray | None = None) -> np.ndarray:
    """|e_i - centre| of some rows, within a span where one is given, in bounded memory.

    Parameters
    ----------
    E : float32 array of shape (V, d)
    ids : int64 array of shape (n,)
    centre : float64 array of shape (d,)
    span : float64 array of shape (d, r), optional
        Orthonormal columns.

    Returns
    -------
    float64 array of shape (n,)
    """
    found = np.empty(len(ids))
    for begin in range(0, len(ids), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        rows = E[ids[part]] - centre
        found[part] = np.linalg.norm(rows if span is None else rows @ span, axis=1)
    return found


def _predicted_norms(alignment: align.Alignment, U: np.ndarray) -> np.ndarray:
    """|P_i - mu_e| before norms are matched, float64 (T,)."""
    found = np.empty(len(U))
    for begin in range(0, len(U), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        found[part] = np.linalg.norm((U[part] - alignment.mu_u) @ alignment.W, axis=1)
    return found


def frequency_matched_permutation(counts: np.ndarray, seed: int) -> np.ndarray:
    """A permutation of tokens within deciles of their count, int64 (T,): the control of every mode."""
    return align.permute_within(align.deciles(counts), seed)


def _fit_variances(
    fit: AlignmentFit,
    U: np.ndarray,
    E: np.ndarray,
    frequencies: TokenFrequencies,
    protected: np.ndarray,
    rho: np.ndarray,
    span: np.ndarray | None,
) -> blend.Variances:
    """Variances of rows that did not fit the map: anchors without their fold, and all rarer tokens; `rho` is (T,).

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
    relative = np.maximum(error, 0) / np.maximum(rho[tokens], 1e-12) ** 2
    return blend.fit_variances(relative, frequencies.exposure[tokens], frequencies.corpus[tokens])


def adjusted_head_bias(
    bias: np.ndarray, frequencies: TokenFrequencies, protected: np.ndarray, strength: float
) -> np.ndarray:
    """The head bias moved from pretraining's log unigram frequency towards the corpus'.

    Parameters
    ----------
    bias : float array of shape (V,)
    frequencies : TokenFrequencies
        Of T <= V tokens; entries beyond them stay.
    protected : int64 array of shape (p,)
        Ids whose entry stays.
    strength : float
        From 0 (nothing) to 1 (all the way to the corpus).

    Returns
    -------
    float64 array of shape (V,)
    """
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
    """The proposal at given strengths, as an edit.

    Parameters
    ----------
    proposal : RowProposal
    E : float32 array of shape (V, d)
    share : float32 array of shape (T,)
        b_i.
    head_bias : float64 array of shape (V,) or None
        The new head bias; None = as it is.
    facts : dict of str to object
        Added to the figures of the fit.
    shift : float
        Its strength.

    Returns
    -------
    EmbeddingEdit
    """
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
