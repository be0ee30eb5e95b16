"""Which strengths: head bias, rows on top of it, shift on top of both, each against doing nothing."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from wals_spark.checkpoints.checkpoint import Checkpoint, embedding_values
from wals_spark.checkpoints.edit import TokenFactors
from wals_spark.config import Config
from wals_spark.errors import GateError
from wals_spark.inject import modes
from wals_spark.inject.loss_search import GridSearchResult, LossScorer, best_strength, mean_difference, sample_text
from wals_spark.mlm.data import SpecialIds

logger = logging.getLogger(__name__)

HEAD_BIAS_GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
HALF_EXPOSURE_GRID = (0.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
SHIFT_GRID = (0.0, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
LENGTH = 128


@dataclass(frozen=True)
class Strengths:
    """What was chosen.

    Attributes
    ----------
    half_exposure : float
        h of the blend.
    head_bias : float
    shift : float
    facts : dict
        Losses of all candidates and the gains with intervals, for injection.json.
    """

    half_exposure: float
    head_bias: float
    shift: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)


def search_strengths(
    config: Config,
    opened: Checkpoint,
    proposal: modes.RowProposal,
    factors: TokenFactors,
    special: SpecialIds,
    directories: Sequence[str],
) -> Strengths:
    """Choose by masked-LM loss on a sample of the domain's text.

    Raises
    ------
    GateError
        Nothing that may be chosen gains anything clear; ``force`` and ``gate: false`` let it pass.
    """
    inject = config.inject
    assert opened.head_bias is not None
    E, bias = embedding_values(opened), opened.tensors[opened.head_bias].values()
    sample = sample_text(
        directories, special, sequences=inject.text_sequences, length=_length(opened), seed=config.seed
    )
    scorer = LossScorer(str(opened.directory), sample.masked)
    documents = sample.masked.document
    seen = proposal.frequencies.without(sample.counts[: len(factors.counts)])
    proposal = replace(proposal, frequencies=seen)
    goal = seen.towards(inject.bias_goal)
    facts: dict[str, Any] = {"targets": len(sample.masked), "sequences": len(sample.masked.inputs)}

    def biased(strength: float) -> np.ndarray | None:
        return modes.adjusted_head_bias(bias, goal, proposal.protected, strength) if strength else None

    base = scorer()
    facts["base_loss"] = float(base.mean())
    chosen_bias = float(inject.head_bias) if inject.head_bias != "auto" else 0.0
    if inject.head_bias == "auto":
        losses = {s: base if s == 0 else scorer(bias=biased(s)) for s in HEAD_BIAS_GRID}
        found = best_strength(losses, documents, config.seed)
        chosen_bias, before = found.best, losses[found.best]
        facts["head_bias_choice"] = found.to_json()
        logger.info("inject: head bias strength %g, %s", chosen_bias, _told(found))
    else:
        before = scorer(bias=biased(chosen_bias)) if chosen_bias else base
    half, now = 0.0, before
    if inject.mode == "blend" and inject.strengths != "fitted":
        losses = {0.0: before}
        for candidate in HALF_EXPOSURE_GRID[1:]:
            losses[candidate] = scorer(*proposal.rows(E, proposal.shares(candidate)), biased(chosen_bias))
        rows_choice = best_strength(losses, documents, config.seed)
        half = rows_choice.best
        facts["rows_choice"] = rows_choice.to_json()
        logger.info("inject: rows half-way at exposure %g, %s", half, _told(rows_choice))
        if half > 0:
            half = _against_permuted(
                config, proposal, factors, scorer, losses[half], half, biased(chosen_bias), facts, E
            )
        now = losses[half]
    elif inject.mode == "blend":
        half = proposal.variances.half_exposure
        now = scorer(*proposal.rows(E, proposal.shares(half)), biased(chosen_bias))
    chosen_shift = 0.0 if inject.shift == "auto" else float(inject.shift)
    if inject.shift == "auto":
        share = proposal.shares(half) if inject.mode == "blend" else proposal.everything()
        losses = {0.0: now}
        for candidate in SHIFT_GRID[1:]:
            losses[candidate] = scorer(*proposal.rows(E, share, shift=candidate), biased(chosen_bias))
        shift_choice = best_strength(losses, documents, config.seed)
        chosen_shift = shift_choice.best
        facts["shift_choice"] = shift_choice.to_json()
        logger.info("inject: shift %g, %s", chosen_shift, _told(shift_choice))
    nothing = inject.mode == "blend" and half == chosen_bias == chosen_shift == 0
    if nothing and inject.gate and not inject.force:
        raise GateError(
            f"inject: the gate refused, nothing was written: on {len(sample.masked)} masked tokens of the corpus no "
            f"strength gains anything clear over the checkpoint as it is ({facts['base_loss']:.4f} nats). "
            "--set inject.force=true writes in spite of it and records that",
            details={"strengths": facts, "gate": proposal.fit.gate.to_json()},
        )
    return Strengths(half, chosen_bias, chosen_shift, facts)


def _against_permuted(
    config: Config,
    proposal: modes.RowProposal,
    factors: TokenFactors,
    scorer: LossScorer,
    loss: np.ndarray,
    half: float,
    bias: np.ndarray | None,
    facts: dict[str, Any],
    E: np.ndarray,
) -> float:
    """`half` where the rows gain clearly more than permuted ones, else 0."""
    shuffled = modes.permutation(factors.counts, config.seed)
    ids, rows = proposal.rows(E, proposal.shares(half), take=shuffled)
    gain = mean_difference(scorer(ids, rows, bias), loss, scorer.masked.document, config.seed)
    facts["gain_over_permuted"] = {"value": gain.value, "low": gain.low, "high": gain.high}
    if gain.low > 0 or config.inject.force:
        return half
    logger.info("inject: permuted rows do as well (%.4f [%.4f, %.4f]): no row changes", gain.value, gain.low, gain.high)
    return 0.0


def _told(choice: GridSearchResult) -> str:
    gain = choice.gain
    return f"gain {gain.value:.4f} [{gain.low:.4f}, {gain.high:.4f}] nats"


def _length(opened: Checkpoint) -> int:
    positions = int(opened.config.get("max_position_embeddings", LENGTH + 2))
    return min(LENGTH, positions - int(opened.config.get("pad_token_id") or 0) - 1)
