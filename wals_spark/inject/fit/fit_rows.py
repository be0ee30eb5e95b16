r"""Rows and head bias of a masked language model, fitted to its hidden states on a domain's text.

::

    J(R, A, b) = - sum_t log softmax_v((E0_v + D_v) . h_t + b0_v + b_v)[y_t]
                 + lambda_R/2 |R|^2 + lambda_A/2 |A|^2 + lambda_b/2 |b|^2 ,      D = R + F A

R and b are of the tokens that occur among the targets: a token that the sample never shows would only be pushed down.
F A moves every token that the corpus counts often enough. J is convex; `newton` minimises it, `penalty_choice` chooses
lambda_R on documents held out. lambda_b = lambda_R / s^2 with s^2 = |h|^2 / `BIAS_SHARE`, lambda_A is a multiple of
lambda_R.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from wals_spark.cluster.process_group import Group
from wals_spark.errors import InputError
from wals_spark.inject.fit.group_loss import GroupLoss, gather_ragged
from wals_spark.inject.fit.newton import Minimum, minimise
from wals_spark.inject.fit.penalised_loss import PenalisedLoss
from wals_spark.inject.fit.penalty_choice import HeldOutLoss, choose_ridge, held_out_gain, ridge_grid, still_falls
from wals_spark.inject.fit.row_parameters import BiasParameters, FeatureBasis, RowParameters, feature_basis
from wals_spark.inject.fit.softmax_loss import OutputLayer, SoftmaxLoss
from wals_spark.mlm.hidden_states import MaskedStates

logger = logging.getLogger(__name__)

BIAS_SHARE = 7.0
COARSE_TOLERANCE = 0.02
"""Of the fits that penalties are compared by, as a share of the decrease of J."""
COUNT_CURVATURE = 0.3
"""A guess of p (1 - p) at a token's own targets, where the base does not know it yet."""


@dataclass(frozen=True)
class FitSettings:
    """What is fitted and how.

    Attributes
    ----------
    rows : {"bias", "free", "factors", "both"}
    lambda_rows : float or None
        lambda_R; None = chosen on held-out documents.
    lambda_bias : float or None
        lambda_b; None = lambda_R BIAS_SHARE / |h|^2.
    factor_ratio : float
        lambda_A / lambda_R, for factors whose rows have a mean length of 1.
    factor_min_count : int
        Tokens that the corpus has less often do not move by their factors.
    tolerance : float
        The end is reached where an iteration can gain less than this share of the decrease of J.
    iterations : int
        At most, of each minimisation.
    seed : int
        Of the bootstrap.
    """

    rows: Literal["bias", "free", "factors", "both"] = "free"
    lambda_rows: float | None = None
    lambda_bias: float | None = None
    factor_ratio: float = 100.0
    factor_min_count: int = 20
    tolerance: float = 1e-3
    iterations: int = 30
    seed: int = 0


@dataclass(frozen=True)
class FitTexts:
    """A rank's share of the states.

    Attributes
    ----------
    training, validation : MaskedStates
    general : MaskedStates or None
        Of text like the model's pretraining.
    """

    training: MaskedStates
    validation: MaskedStates
    general: MaskedStates | None = None


@dataclass(frozen=True)
class FitTokens:
    """What is known of the V tokens.

    Attributes
    ----------
    protected : int64 array of shape (p,)
        Ids that never move.
    factors : float32 array of shape (V, k) or None
        F; zeros for a token without.
    counts : int64 array of shape (V,) or None
        By the corpus; needed with factors.
    """

    protected: np.ndarray
    factors: np.ndarray | None = None
    counts: np.ndarray | None = None


@dataclass(frozen=True)
class FittedRows:
    """The result, the same on every rank.

    Attributes
    ----------
    ids : int64 array of shape (A,)
        Tokens that move, ascending.
    rows : float32 array of shape (A, d)
        D.
    bias : float32 array of shape (A,)
        b.
    facts : dict of str to object
        Figures, plain JSON values.
    """

    ids: np.ndarray
    rows: np.ndarray
    bias: np.ndarray
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FitState:
    """Where a fit is, enough to go on from there.

    Attributes
    ----------
    tried : tuple of HeldOutLoss
        Penalties that were tried.
    theta : float32 array of shape (S + k, d + 1)
        In the coordinates of `row_parameters`.
    ridge : float
        lambda_R of the minimisation under way.
    iteration : int
        Of it.
    value : float
        J.
    """

    tried: tuple[HeldOutLoss, ...]
    theta: np.ndarray
    ridge: float
    iteration: int
    value: float


Report = Callable[[FitState], None]


def fit_rows(
    texts: FitTexts,
    base: OutputLayer,
    tokens: FitTokens,
    settings: FitSettings,
    group: Group,
    *,
    device: str = "cpu",
    threads: int = 1,
    report: Report | None = None,
    resume: FitState | None = None,
) -> FittedRows:
    """Choose the penalty and fit.

    Parameters
    ----------
    texts : FitTexts
        This rank's share.
    base : OutputLayer
    tokens : FitTokens
    settings : FitSettings
    group : Group
    device : str
        Of torch.
    threads : int
        On a processor.
    report : callable, optional
        Called after every iteration.
    resume : FitState, optional
        Of an earlier fit of the same texts and settings, which was cut off.

    Returns
    -------
    FittedRows

    Raises
    ------
    InputError
        No target may move, no held-out text to choose a penalty on, or states that are not finite.
    """
    problem = _Problem(texts, base, tokens, settings, group, device, threads, report)
    theta, ridge, tried = problem.choose(resume)
    end = problem.minimise(theta, ridge, settings.tolerance, tried)
    final = problem.held_out(end.theta, ridge)
    D = problem.parameters.rows(end.theta).cpu().numpy()
    return FittedRows(
        problem.movable,
        D[:, :-1].copy(),
        (D[:, -1] * problem.bias_scale).astype(np.float32),
        problem.facts(end, ridge, tried, final),
    )


class _Problem:
    """A fit of given texts: what all penalties share."""

    def __init__(
        self,
        texts: FitTexts,
        base: OutputLayer,
        tokens: FitTokens,
        settings: FitSettings,
        group: Group,
        device: str,
        threads: int,
        report: Report | None,
    ) -> None:
        self.settings, self.group, self.threads, self.report = settings, group, threads, report
        seen = _target_counts(texts.training, len(base.E), group)
        if not seen.any():
            raise InputError("there are no targets to fit rows to: all documents are held out; add documents")
        self.free, self.movable = movable_tokens(seen, tokens, settings)
        if not len(self.movable):
            raise InputError("no token that occurs among the targets may move: all are special tokens")
        self.mean_square = _mean_square(texts.training, group)
        self.bias_scale = _bias_scale(settings, self.mean_square)

        def loss(states: MaskedStates) -> GroupLoss:
            return GroupLoss(SoftmaxLoss(states, base, self.movable, self.bias_scale, device), group)

        self.training, self.validation = loss(texts.training), loss(texts.validation)
        self.general = None if texts.general is None else loss(texts.general)
        self.count = self.training.count()
        self.parameters = self._parameters(seen, tokens, feature_basis(self.training.gram(), self.count, device))
        zeros = self.training.own.W0.new_zeros(self.training.own.shape)
        self.base_losses = self.validation.losses(zeros)
        self.base_general = None if self.general is None else self.general.losses(zeros)
        self.documents = gather_ragged(group, texts.validation.document)
        self.general_documents = None if texts.general is None else gather_ragged(group, texts.general.document)

    def _parameters(self, seen: np.ndarray, tokens: FitTokens, basis: FeatureBasis) -> RowParameters | BiasParameters:
        import torch

        at_base = self.training.evaluate(self.training.own.W0.new_zeros(self.training.own.shape))
        self.base_value = at_base.loss
        own = torch.from_numpy(seen[self.movable].astype(np.float32)).to(at_base.mass.device)
        curvature = at_base.mass - at_base.squared_mass + COUNT_CURVATURE * own
        if self.settings.rows == "bias":
            return BiasParameters(basis, self.bias_scale, curvature)
        factors = None if self.settings.rows == "free" else unit_factors(tokens, self.movable)
        scale = self.settings.factor_ratio**-0.5
        return RowParameters(basis, len(self.movable), self.free, factors, scale, curvature)

    def choose(self, resume: FitState | None) -> tuple[Any, float, list[HeldOutLoss]]:
        """The start of the fit, its lambda_R, and the penalties tried."""
        import torch

        theta = self.parameters.zeros()
        if resume is not None:
            if resume.theta.shape != self.parameters.shape:
                raise InputError(
                    f"the fit was cut off with parameters of shape {resume.theta.shape}, now they have "
                    f"{self.parameters.shape}: the states are others; run `wals-spark inject --force`"
                )
            theta = torch.from_numpy(resume.theta).to(theta.device)
        if self.settings.lambda_rows is not None:
            return theta, self.settings.lambda_rows, []
        if not len(self.documents):
            raise InputError(
                "there is no held-out text to choose fit.lambda_rows on (states.validation_fraction is 0): set it to a "
                "number"
            )
        tried = [] if resume is None else list(resume.tried)
        for ridge in ridge_grid(self.mean_square)[len(tried) :]:
            if not still_falls(tried):
                break
            theta = self.minimise(theta, ridge, COARSE_TOLERANCE, tried).theta
            tried.append(self.held_out(theta, ridge))
            logger.info("fit: lambda_rows %.4g: held-out loss %.4f nats", ridge, tried[-1].losses.mean())
        chosen = choose_ridge(tried, self.documents, self.settings.seed, self.base_general)
        return theta, tried[chosen].ridge, tried

    def minimise(self, theta: Any, ridge: float, tolerance: float, tried: list[HeldOutLoss]) -> Minimum:
        """J's minimum under a penalty, from a start."""
        function = PenalisedLoss(self.training, self.parameters, ridge, self.threads)
        report = self.report

        def after(found: Minimum) -> None:
            if report is not None:
                now = found.theta.cpu().numpy()
                report(FitState(tuple(tried), now, ridge, len(found.values) - 1, found.value))

        return minimise(
            function,
            theta,
            tolerance=tolerance,
            iterations=self.settings.iterations,
            reference=self.base_value,
            after_iteration=after,
        )

    def held_out(self, theta: Any, ridge: float) -> HeldOutLoss:
        """The losses on held-out and on general text."""
        D = self.parameters.rows(theta)
        general = None if self.general is None else self.general.losses(D)
        return HeldOutLoss(ridge, self.validation.losses(D), general)

    def facts(self, end: Minimum, ridge: float, tried: list[HeldOutLoss], final: HeldOutLoss) -> dict[str, Any]:
        """Figures for the manifest."""

        def gain(fit: HeldOutLoss) -> dict[str, Any]:
            seed = self.settings.seed
            return held_out_gain(
                fit, self.base_losses, self.documents, seed, self.base_general, self.general_documents
            ).to_json()

        return {
            "rows": self.settings.rows,
            "lambda_rows": ridge,
            "lambda_bias": ridge / self.bias_scale**2,
            "lambda_factors": ridge * self.settings.factor_ratio if self.settings.rows in ("factors", "both") else None,
            "positions": self.count,
            "free_rows": len(self.free),
            "moved_rows": len(self.movable),
            "objective": end.values,
            "converged": end.converged,
            "evaluations": end.evaluations,
            "hessian_products": end.products,
            "held_out_base_loss": float(self.base_losses.mean()) if len(self.base_losses) else None,
            "held_out": gain(final) if len(self.base_losses) else None,
            "tried": [gain(fit) for fit in tried],
        }


def movable_tokens(seen: np.ndarray, tokens: FitTokens, settings: FitSettings) -> tuple[np.ndarray, np.ndarray]:
    """Which of the movable tokens move freely, by their place among them, and the ids of all that move.

    Parameters
    ----------
    seen : int64 array of shape (V,)
        Occurrences among the targets.
    tokens : FitTokens
    settings : FitSettings

    Returns
    -------
    free : int64 array of shape (S,)
    movable : int64 array of shape (A,)
    """
    may = np.ones(len(seen), bool)
    may[tokens.protected] = False
    free = may & (seen > 0) & (settings.rows != "factors")
    moves = free.copy()
    if settings.rows in ("factors", "both"):
        if tokens.factors is None or tokens.counts is None:
            raise InputError(f"fit.rows is {settings.rows}, but there are no factors: run `wals-spark train`")
        moves |= may & (tokens.counts >= settings.factor_min_count) & tokens.factors.any(axis=1)
    movable = np.flatnonzero(moves)
    return np.flatnonzero(free[movable]), movable


def unit_factors(tokens: FitTokens, movable: np.ndarray) -> np.ndarray:
    """F of the movable tokens, scaled to a mean length of 1; zeros for tokens seldom counted have no length."""
    assert tokens.factors is not None
    F = tokens.factors[movable].astype(np.float32)
    lengths = np.linalg.norm(F, axis=1)
    mean = float(lengths[lengths > 0].mean()) if (lengths > 0).any() else 1.0
    return F / np.float32(mean)


def _target_counts(states: MaskedStates, size: int, group: Group) -> np.ndarray:
    """Occurrences of every token among the targets of all ranks, int64 (V,)."""
    if len(states) and states.target.max() >= size:
        raise InputError(
            f"the states have a target {states.target.max()}, the checkpoint has {size} rows: they are of another "
            "tokenizer; run `wals-spark states --force`"
        )
    return group.all_reduce(np.bincount(states.target, minlength=size).astype(np.int64))


def _mean_square(states: MaskedStates, group: Group) -> float:
    """|h|^2, the mean over the positions of all ranks."""
    total = np.zeros(2)
    for start in range(0, len(states), 65536):
        part = states.hidden[start : start + 65536].astype(np.float32)
        total += [float((part * part).sum(dtype=np.float64)), len(part)]
    total = group.all_reduce(total)
    if not np.isfinite(total[0]) or total[0] == 0:
        raise InputError(
            f"the mean squared length of the states is {total[0] / max(total[1], 1)}, expected a positive number: run "
            "`wals-spark states --force`, and check the checkpoint's weights"
        )
    return float(total[0] / total[1])


def _bias_scale(settings: FitSettings, mean_square: float) -> float:
    """s, so that lambda_b = lambda_R / s^2."""
    if settings.lambda_rows is not None and settings.lambda_bias is not None:
        return float((settings.lambda_rows / settings.lambda_bias) ** 0.5)
    return float((mean_square / BIAS_SHARE) ** 0.5)
