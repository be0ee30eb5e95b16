"""Rows of the metrics table: those that the evaluation writes, and all those of a run."""

from __future__ import annotations

from typing import Any

import numpy as np

from wals_spark import schemas
from wals_spark.evaluate.masked_lm import MaskedLmResult
from wals_spark.evaluate.vector_scores import VectorScores
from wals_spark.mlm.statistics import Interval
from wals_spark.stage import Context, Metric

PRETRAIN_PREFIX = "pretrain."
"""Metrics of masked-LM training runs that the report shows: stage ``pretrain.<name>``, rows ``loss`` by step."""
DIFFERENCE_PREFIX = "difference."


def _metric(name: str, interval: Interval) -> Metric:
    def finite_or_none(bound: float) -> float | None:
        return bound if np.isfinite(bound) else None

    return Metric(name, interval.value, finite_or_none(interval.low), finite_or_none(interval.high))


def vector_metrics(scores: VectorScores) -> list[Metric]:
    """Rows of the metrics table; what could not be measured is left out, its coverage says why."""
    metrics = []
    for item in scores.similarities:
        metrics.append(Metric(f"similarity.{item.name}.coverage", item.covered / item.pairs))
        if np.isfinite(item.rho.value):
            metrics.append(_metric(f"similarity.{item.name}", item.rho))
            metrics += [_metric(f"similarity.{item.name}.{name}", rho) for name, rho in item.controls.items()]
    for questions in scores.analogies:
        metrics.append(Metric(f"analogy.{questions.name}.coverage", questions.covered / questions.questions))
        if questions.covered:
            metrics.append(_metric(f"analogy.{questions.name}.3cosadd", questions.add))
            metrics.append(_metric(f"analogy.{questions.name}.3cosmul", questions.mul))
            metrics += [
                _metric(f"analogy.{questions.name}.{name}", found) for name, found in questions.controls.items()
            ]
    shape = scores.geometry
    if np.isfinite(shape.mean_cosine):
        metrics.append(Metric("geometry.mean_cosine", shape.mean_cosine))
        metrics.append(Metric("geometry.effective_rank", shape.effective_rank))
        metrics.append(Metric("geometry.first_share", shape.first_share))
    return metrics


def masked_metrics(result: MaskedLmResult) -> list[Metric]:
    """Rows of the metrics table: ``masked_lm.<arm>.<figure>``, ``rare.<probe>.<bucket>.<arm>.<figure>``."""
    metrics = [_metric("masked_lm.unigram.nll", result.unigram)]
    for arm, figures in result.arms.items():
        metrics += [_metric(f"masked_lm.{arm}.{name}", interval) for name, interval in figures.items()]
    for arm, figures in result.differences.items():
        metrics += [_metric(f"masked_lm.{arm}-{result.base}.{name}", interval) for name, interval in figures.items()]
    for bucket in result.buckets:
        prefix = f"rare.{bucket.probe}.{bucket.name}"
        metrics.append(Metric(f"{prefix}.types", bucket.types))
        for arm, figures in bucket.arms.items():
            metrics += [_metric(f"{prefix}.{arm}.{name}", interval) for name, interval in figures.items()]
        for arm, figures in bucket.differences.items():
            metrics += [_metric(f"{prefix}.{arm}-{result.base}.{name}", interval) for name, interval in figures.items()]
    return metrics


def read_metrics(context: Context) -> dict[str, list[dict[str, Any]]]:
    """The metrics of the run: stage -> rows with name, value, low, high, step."""
    found: dict[str, list[dict[str, Any]]] = {}
    for data_file in context.tables.files(schemas.METRICS, {"run_id": context.config.run_id}):
        part = data_file.read(["name", "value", "low", "high", "step"])
        found.setdefault(data_file.values["stage"], []).extend(part.to_pylist())
    return found
