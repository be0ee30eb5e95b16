"""What the report shows, gathered from manifests, metrics and results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wals_spark import storage
from wals_spark.config import Config
from wals_spark.evaluate.before_after import compares_models, trained_batches
from wals_spark.evaluate.charts import SeriesPoint
from wals_spark.evaluate.masked_lm import MaskedLmResult
from wals_spark.evaluate.metrics import DIFFERENCE_PREFIX, PRETRAIN_PREFIX, read_metrics
from wals_spark.evaluate.report_content import ReportData, StageTime, TrainingCurve
from wals_spark.evaluate.vector_scores import VectorScores
from wals_spark.factors.stages import NEIGHBOURS_FILE
from wals_spark.factors.store import Vectors
from wals_spark.mlm.statistics import Interval
from wals_spark.runs import Manifest, now, package_versions
from wals_spark.stage import Context, StageRun


def _interval(row: Mapping[str, Any]) -> Interval:
    low, high = row["low"], row["high"]
    missing = low is None or high is None
    return Interval(row["value"], np.nan if missing else low, np.nan if missing else high, 0, 0)


def _points(rows: Sequence[Mapping[str, Any]]) -> list[SeriesPoint]:
    rows = sorted((row for row in rows if row["name"] == "loss" and row["step"] is not None), key=lambda r: r["step"])
    return [SeriesPoint(row["step"], row["value"], row["low"], row["high"]) for row in rows]


def report_data(
    stage_run: StageRun, vectors: Vectors, scores: VectorScores, masked: MaskedLmResult | None
) -> ReportData:
    """What the page shows: results, and what manifests and metrics of the run say about them.

    Parameters
    ----------
    stage_run : StageRun
    vectors : Vectors
    scores : VectorScores
        Of the vectors.
    masked : MaskedLmResult or None
        Of the checkpoints before and after injection, where they were compared.

    Returns
    -------
    ReportData
    """
    context = stage_run.context
    config = context.config
    metrics = read_metrics(context)
    trained = {name: rows for name, rows in sorted(metrics.items()) if name.startswith(PRETRAIN_PREFIX)}
    differences = [
        (f"{name.removeprefix(PRETRAIN_PREFIX)} − {row['name'].removeprefix(DIFFERENCE_PREFIX)}", _interval(row))
        for name, rows in trained.items()
        for row in rows
        if row["name"].startswith(DIFFERENCE_PREFIX)
    ]
    neighbours = context.run.path(NEIGHBOURS_FILE)
    inject = next((manifest for (name, _), manifest in stage_run.inputs.items() if name == "inject"), None)
    return ReportData(
        run_id=config.run_id,
        mode=config.inject.mode,
        made_at=_when(now()),
        fingerprint=config.fingerprint,
        subtitle=_subtitle(stage_run, vectors),
        loss=_points(metrics.get("train", [])),
        objective=_objective(stage_run),
        trainings=[TrainingCurve(name.removeprefix(PRETRAIN_PREFIX), _points(rows)) for name, rows in trained.items()],
        training_differences=differences,
        similarity=scores.similarities,
        analogies=scores.analogies,
        geometry=scores.geometry,
        combine=config.evaluate.combine,
        masked=masked,
        neighbours=storage.read_json(neighbours) if storage.exists(neighbours) else {},
        injection=_injection(config, inject),
        stages=_stage_times(context),
        versions=package_versions(),
        configuration=config.to_yaml(),
    )


def _objective(stage_run: StageRun) -> str:
    """The preset that the factors were trained with."""
    default = stage_run.context.config.train.objective
    return str(stage_run.input("train").config.get("train", {}).get("objective", default))


def _subtitle(stage_run: StageRun, vectors: Vectors) -> str:
    config = stage_run.context.config
    rows, k = vectors.matrix.shape
    text = f"{rows:,} vectors of {k} numbers by WALS, objective {_objective(stage_run)}"
    if config.inject.mode != "none":
        text += f"; {config.inject.mode} of {config.inject.checkpoint}"
    return f"{text}."


def _injection(config: Config, manifest: Manifest | None) -> dict[str, str]:
    if manifest is None:
        return {}
    facts = {"mode": config.inject.mode, "checkpoint": str(config.inject.checkpoint)}
    gate = manifest.outputs.get("gate")
    if isinstance(gate, Mapping) and gate.get("reason"):
        facts["gate"] = str(gate["reason"]) if gate.get("passed") else f"not passed, forced: {gate['reason']}"
    if config.evaluate.masked_lm and not compares_models(config):
        facts["masked-LM loss"] = "not compared: before and after have different tokens"
    return {**facts, **_scalars(manifest.outputs)}


def _scalars(outputs: Mapping[str, Any]) -> dict[str, str]:
    """The facts of a manifest that are one number or one short text."""
    shown = {}
    for name, value in outputs.items():
        label = name.replace("_", " ")
        if isinstance(value, bool):
            shown[label] = "yes" if value else "no"
        elif isinstance(value, int):
            shown[label] = f"{value:,}"
        elif isinstance(value, float):
            shown[label] = f"{value:.6g}"
        elif isinstance(value, str) and 0 < len(value) <= 120:
            shown[label] = value
    return shown


def _when(moment: str) -> str:
    """``2026-01-31 12:00 UTC`` of an ISO time in UTC."""
    return f"{moment[:10]} {moment[11:16]} UTC" if moment else ""


def _stage_times(context: Context) -> list[StageTime]:
    """The stages behind this output, in the order in which they ended."""
    config = context.config
    keys = {"train": config.run_id, "export": config.run_id, "neighbours": config.run_id}
    wanted = list(keys.items())
    for batch in trained_batches(config, context.manifests):
        wanted += [(name, batch) for name in ("corpus", "vocabulary", "cooccurrence")]
    if config.inject.mode != "none":
        wanted += [(name, config.injection) for name in ("inject", "verify")]
    found = [context.manifests.find(name, key) for name, key in wanted]
    done = sorted(
        (manifest for manifest in found if manifest is not None and manifest.complete),
        key=lambda manifest: (manifest.finished_at or "", manifest.started_at),
    )
    several = len(trained_batches(config, context.manifests)) > 1
    return [
        StageTime(
            f"{manifest.stage} {manifest.key}" if several and manifest.key not in keys.values() else manifest.stage,
            manifest.seconds or 0.0,
            _when(manifest.finished_at or ""),
            ", ".join(f"{name} {value}" for name, value in list(_scalars(manifest.outputs).items())[:6]),
        )
        for manifest in done
    ]
