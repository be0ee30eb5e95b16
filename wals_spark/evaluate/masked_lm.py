"""Masked-LM loss and rare-token accuracy of checkpoints on the same masks, and their differences.

Loss is resampled by document, the rare-token probes by token type. A difference is after - before on the
same targets; it is *clear* where its 95 % interval leaves out 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from wals_spark.mlm.data import MaskedSequences, PackedSequences, SpecialIds, mask_tokens
from wals_spark.mlm.loss import Scores, best_device, score, target_metrics, unigram_nll
from wals_spark.mlm.rare import MIN_TYPES, Probe, bucket_names, context_probe, target_probe
from wals_spark.mlm.statistics import Clusters, Interval

LOWER_IS_BETTER = frozenset({"nll"})
POOL = 8
"""The probes search for rare tokens in this multiple of the sequences of the loss."""


@dataclass(frozen=True)
class BucketResult:
    """A probe's figures on the tokens of one bucket of counts.

    Attributes
    ----------
    probe : {"target", "context"}
    name : str
        The counts, for example ``5-19``.
    types, n : int
        Token types and targets.
    arms : mapping of arm -> figure -> Interval
    differences : mapping of arm -> figure -> Interval
        Arm - base, for every arm but the base; ``macro_nll`` is the loss averaged over types.
    """

    probe: str
    name: str
    types: int
    n: int
    arms: dict[str, dict[str, Interval]]
    differences: dict[str, dict[str, Interval]]


@dataclass(frozen=True)
class MaskedLmResult:
    """What `evaluate_masked_lm` gives.

    Attributes
    ----------
    base : str
        The arm that the differences are against: the first.
    targets, documents, sequences : int
    unigram : Interval
        Loss of a model that knows token frequencies only.
    arms, differences : as in `BucketResult`
    buckets : list of BucketResult
        Those with `MIN_TYPES` types or more, rarest first, probe ``target`` before ``context``.
    """

    base: str
    targets: int
    documents: int
    sequences: int
    unigram: Interval
    arms: dict[str, dict[str, Interval]]
    differences: dict[str, dict[str, Interval]]
    buckets: list[BucketResult]


@dataclass(frozen=True)
class MaskedLmTask:
    """The fixed masks that every arm is measured on.

    Attributes
    ----------
    masked : MaskedSequences
    sequences : int
    counts : int64 array of shape (V,)
        Of the corpus that the factors were counted on.
    probes : mapping of name -> Probe
    """

    masked: MaskedSequences
    sequences: int
    counts: np.ndarray
    probes: dict[str, Probe]


def make_masked_lm_task(
    pool: PackedSequences,
    special: SpecialIds,
    counts: np.ndarray,
    seed: int,
    *,
    sequences: int,
    mask_fraction: float,
    probe_targets: int,
) -> MaskedLmTask:
    """Fix the masks: of the first `sequences` for the loss, of the whole pool for the probes.

    Parameters
    ----------
    pool : PackedSequences
    special : SpecialIds
    counts : int64 array of shape (V,)
        Of the corpus that the factors were counted on.
    seed : int
    sequences : int
    mask_fraction : float
        Share of a sequence that is hidden.
    probe_targets : int
        Targets per bucket of a probe at most; 0 for no probes.

    Returns
    -------
    MaskedLmTask
    """
    part = PackedSequences(pool.ids[:sequences], pool.document[:sequences], pool.documents)
    probes = {}
    if probe_targets:
        for name, make in (("target", target_probe), ("context", context_probe)):
            probes[name] = make(pool, counts, special, seed, per_bucket=probe_targets, fraction=mask_fraction)
    return MaskedLmTask(mask_tokens(part, special, mask_fraction, seed), len(part), counts, probes)


def evaluate_masked_lm(
    task: MaskedLmTask,
    models: Mapping[str, Callable[[], Any]],
    *,
    resamples: int = 2000,
    seed: int = 1,
    batch_size: int = 16,
) -> MaskedLmResult:
    """Score every arm; the models are loaded one after the other, so that one is in memory at a time.

    Parameters
    ----------
    task : MaskedLmTask
    models : mapping of str -> callable
        Arm -> a function that loads its model; the first arm is the base of the differences.
    resamples : int
        Of the bootstrap.
    seed : int
    batch_size : int
        Sequences per forward pass.

    Returns
    -------
    MaskedLmResult
    """
    loss: dict[str, Scores] = {}
    probes: dict[str, dict[str, Scores]] = {name: {} for name in task.probes}
    for arm, load in models.items():
        model = load().to(best_device())
        loss[arm] = score(model, task.masked, batch_size=batch_size, label=f"masked LM, {arm}")
        for name, probe in task.probes.items():
            probes[name][arm] = score(model, probe.masked, batch_size=batch_size, label=f"{name} probe, {arm}")
        del model
    clusters = Clusters(task.masked.document, resamples, seed)
    arms, differences = _figures(loss, clusters)
    buckets = [
        bucket for name, probe in task.probes.items() for bucket in _buckets(name, probe, probes[name], resamples, seed)
    ]
    return MaskedLmResult(
        base=next(iter(models)),
        targets=len(task.masked),
        documents=clusters.count,
        sequences=task.sequences,
        unigram=clusters.mean(unigram_nll(task.masked, task.counts)),
        arms=arms,
        differences=differences,
        buckets=buckets,
    )


def _figures(
    scores: Mapping[str, Scores], clusters: Clusters, kept: np.ndarray | None = None
) -> tuple[dict[str, dict[str, Interval]], dict[str, dict[str, Interval]]]:
    """Per arm, and per arm minus the first one."""
    values = {
        arm: {name: column if kept is None else column[kept] for name, column in target_metrics(found).items()}
        for arm, found in scores.items()
    }
    base = next(iter(values.values()))
    arms = {arm: {name: clusters.mean(column) for name, column in own.items()} for arm, own in values.items()}
    differences = {}
    for arm, own in list(values.items())[1:]:
        differences[arm] = {name: clusters.difference(column, base[name]) for name, column in own.items()}
        differences[arm]["macro_nll"] = clusters.macro(own["nll"] - base["nll"])
    return arms, differences


def _buckets(name: str, probe: Probe, scores: Mapping[str, Scores], resamples: int, seed: int) -> list[BucketResult]:
    found = []
    for number, label in enumerate(bucket_names()):
        kept = probe.bucket == number
        clusters = Clusters(probe.token_type[kept], resamples, seed)
        if clusters.count < MIN_TYPES:
            continue
        arms, differences = _figures(scores, clusters, kept)
        found.append(BucketResult(name, label, clusters.count, int(kept.sum()), arms, differences))
    return found
