"""Strengths of an edit by masked-LM loss: head bias, rows on top of it, shift on top of both, each against 0."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from wals_spark.checkpoints.checkpoint import Checkpoint, embedding_values
from wals_spark.checkpoints.edit import TokenFactors
from wals_spark.config import Config
from wals_spark.errors import GateError
from wals_spark.inject.loss_search import LossScorer, grid_search, mean_difference, sample_text
from wals_spark.inject.proposal import RowProposal, TokenFrequencies, adjusted_head_bias, frequency_matched_permutation
from wals_spark.mlm.data import SpecialIds

logger = logging.getLogger(__name__)

HEAD_BIAS_GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
HALF_EXPOSURE_GRID = (0.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
SHIFT_GRID = (0.0, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
LENGTH = 128


@dataclass(frozen=True)
class Strengths:
    """The strengths of an edit.

    Attributes
    ----------
    half_exposure : float
        h of the blend.
    head_bias : float
        From 0 (as it is) to 1 (all the way to the corpus).
    shift : float
    facts : dict of str to object
        Losses of all candidates and the gains with intervals, for injection.json.
    """

    half_exposure: float
    head_bias: float
    shift: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _SampleLosses:
    """Losses of a sample of text under candidate edits; `goal` are the frequencies that the head bias moves to."""

    scorer: LossScorer
    proposal: RowProposal
    E: np.ndarray
    bias: np.ndarray
    goal: TokenFrequencies

    def at(
        self,
        head_bias: float,
        share: np.ndarray | None = None,
        *,
        shift: float = 0.0,
        take: np.ndarray | None = None,
    ) -> np.ndarray:
        """Loss per target, float64 (t,), with the head bias at a strength, and rows at shares (none = as they are)."""
        moved = None
        if head_bias:
            moved = adjusted_head_bias(self.bias, self.goal, self.proposal.protected, head_bias)
        if share is None:
            return self.scorer(bias=moved)
        return self.scorer(*self.proposal.rows(self.E, share, shift=shift, take=take), moved)


@dataclass(frozen=True)
class _Search:
    """The searches of the three strengths, on one sample; `facts` fills as they run."""

    config: Config
    losses: _SampleLosses
    facts: dict[str, Any]

    def over(
        self, label: str, key: str, grid: Sequence[float], at_zero: np.ndarray, loss_at: Callable[[float], np.ndarray]
    ) -> tuple[float, np.ndarray]:
        """The best strength of a grid and the loss there; the search is recorded in `facts` under `key`."""
        documents = self.losses.scorer.masked.document
        found, loss = grid_search(grid, at_zero, loss_at, documents, self.config.seed)
        self.facts[key] = found.to_json()
        gain = found.gain
        logger.info("inject: %s %g, gain %.4f [%.4f, %.4f] nats", label, found.best, gain.value, gain.low, gain.high)
        return found.best, loss

    def head_bias(self, base: np.ndarray) -> tuple[float, np.ndarray]:
        """The strength of the head bias, given or searched, and the loss with it; `base` is that without."""
        given = self.config.inject.head_bias
        if given == "auto":
            return self.over("head bias strength", "head_bias_choice", HEAD_BIAS_GRID, base, self.losses.at)
        return float(given), self.losses.at(float(given)) if given else base

    def rows(self, head_bias: float, before: np.ndarray, counts: np.ndarray) -> tuple[float, np.ndarray]:
        """The half exposure h of a blend, fitted or searched, and the loss with it; `before` is that at h = 0."""
        inject, proposal = self.config.inject, self.losses.proposal
        if inject.mode != "blend":
            return 0.0, before
        if inject.strengths == "fitted":
            half = proposal.variances.half_exposure
            return half, self.losses.at(head_bias, proposal.shares(half))
        half, loss = self.over(
            "rows half-way at exposure",
            "rows_choice",
            HALF_EXPOSURE_GRID,
            before,
            lambda half: self.losses.at(head_bias, proposal.shares(half)),
        )
        if half > 0 and not self._beats_permuted(half, head_bias, loss, counts):
            return 0.0, before
        return half, loss

    def _beats_permuted(self, half: float, head_bias: float, loss: np.ndarray, counts: np.ndarray) -> bool:
        """Whether rows gain clearly more than rows permuted among tokens of similar count; always with ``force``."""
        shuffled = frequency_matched_permutation(counts, self.config.seed)
        permuted = self.losses.at(head_bias, self.losses.proposal.shares(half), take=shuffled)
        gain = mean_difference(permuted, loss, self.losses.scorer.masked.document, self.config.seed)
        self.facts["gain_over_permuted"] = {"value": gain.value, "low": gain.low, "high": gain.high}
        if gain.low > 0 or self.config.inject.force:
            return True
        logger.info(
            "inject: permuted rows do as well (%.4f [%.4f, %.4f]): no row changes", gain.value, gain.low, gain.high
        )
        return False

    def shift(self, half: float, head_bias: float, before: np.ndarray) -> float:
        """The strength of the shift, given or searched; `before` is the loss at the shares of a blend without it."""
        inject, proposal = self.config.inject, self.losses.proposal
        if inject.shift != "auto":
            return float(inject.shift)
        share = proposal.shares(half) if inject.mode == "blend" else proposal.full_shares()
        best, _ = self.over(
            "shift",
            "shift_choice",
            SHIFT_GRID,
            before if inject.mode == "blend" else self.losses.at(head_bias, share),
            lambda strength: self.losses.at(head_bias, share, shift=strength),
        )
        return best


def search_strengths(
    config: Config,
    opened: Checkpoint,
    proposal: RowProposal,
    factors: TokenFactors,
    special: SpecialIds,
    directories: Sequence[str],
) -> Strengths:
    """Choose strengths by masked-LM loss on a sample of the domain's text.

    Parameters
    ----------
    config : Config
    opened : Checkpoint
        With a masked-LM head.
    proposal : RowProposal
    factors : TokenFactors
        Of the corpus.
    special : SpecialIds
        Of the checkpoint's tokenizer.
    directories : sequence of str
        Of token shards of the domain.

    Returns
    -------
    Strengths

    Raises
    ------
    GateError
        No strength gains anything clear; ``force`` and ``gate: false`` let it pass.
    InputError
        There is too little text.
    """
    inject = config.inject
    assert opened.head_bias is not None
    sample = sample_text(
        directories, special, sequences=inject.text_sequences, length=_length(opened), seed=config.seed
    )
    seen = proposal.frequencies.without(sample.counts[: len(factors.counts)])
    E, bias = embedding_values(opened), opened.tensors[opened.head_bias].values()
    scorer = LossScorer(str(opened.directory), sample.masked)
    losses = _SampleLosses(scorer, replace(proposal, frequencies=seen), E, bias, seen.towards(inject.bias_goal))
    base = losses.at(0.0)
    facts = {"targets": len(sample.masked), "sequences": len(sample.masked.inputs), "base_loss": float(base.mean())}
    search = _Search(config, losses, facts)
    head_bias, with_bias = search.head_bias(base)
    half, with_rows = search.rows(head_bias, with_bias, factors.counts)
    shift = search.shift(half, head_bias, with_rows)
    if inject.mode == "blend" and half == head_bias == shift == 0 and inject.gate and not inject.force:
        raise GateError(
            f"inject: the gate refused, nothing was written: on {len(sample.masked)} masked tokens of the corpus no "
            f"strength gains anything clear over the checkpoint as it is ({facts['base_loss']:.4f} nats). "
            "--set inject.force=true writes in spite of it and records that",
            details={"strengths": facts, "gate": proposal.fit.gate.to_json()},
        )
    return Strengths(half, head_bias, shift, facts)


def _length(opened: Checkpoint) -> int:
    """Tokens of a sequence: `LENGTH`, or as many as the model's position embeddings allow."""
    positions = int(opened.config.get("max_position_embeddings", LENGTH + 2))
    return min(LENGTH, positions - int(opened.config.get("pad_token_id") or 0) - 1)
