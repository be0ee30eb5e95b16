"""The stage `evaluate`: vectors on rated files, checkpoints before and after, one report."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from wals_spark import schemas, storage
from wals_spark.config import Config
from wals_spark.errors import ConfigError, GateError, InputError
from wals_spark.evaluate import controls
from wals_spark.evaluate.charts import SeriesPoint
from wals_spark.evaluate.intrinsic import (
    AnalogyResult,
    SimilarityResult,
    VectorGeometry,
    read_pairs,
    read_questions,
    score_vectors,
    vector_geometry,
)
from wals_spark.evaluate.masked_lm import POOL, MaskedLmResult, evaluate_masked_lm, make_masked_lm_task
from wals_spark.evaluate.report import ReportData, StageTime, Training, between, plain, render, signed, verdict
from wals_spark.factors.stages import NEIGHBOURS_FILE
from wals_spark.factors.store import Vectors, read_vectors
from wals_spark.factors.top_k import unit_rows
from wals_spark.mlm.data import encode, pack_sequences, special_ids
from wals_spark.mlm.loss import load_masked_lm, masked_lm_from_config
from wals_spark.mlm.statistics import Interval
from wals_spark.runs import Manifest, ManifestStore, now, package_versions
from wals_spark.stage import Context, Metric, Outcome, Stage, StageRun, write_metrics
from wals_spark.stage_outputs import EvaluateOutputs, TrainOutputs
from wals_spark.tokenizer import load_tokenizer

PRETRAIN_PREFIX = "pretrain."
"""Metrics of masked-LM training runs that the report shows: stage ``pretrain.<name>``, rows ``loss`` by step."""
DIFFERENCE_PREFIX = "difference."
BEFORE, AFTER = "before", "after"


class EvaluateStage(Stage):
    """Vectors on rated files, checkpoints before and after, one report."""

    name = "evaluate"
    sections = ("evaluate",)

    def key(self, config: Config) -> str:
        """The run id, and the mode of injection where there is one."""
        return config.injection

    def inputs(self, config: Config, manifests: ManifestStore) -> Sequence[tuple[str, str]]:
        """The factors and the corpus; neighbours, injection and its proof where they are there."""
        found = [("train", config.run_id), *(("corpus", batch) for batch in batches(config, manifests))]
        if config.run_id in manifests.keys("neighbours"):
            found.append(("neighbours", config.run_id))
        if config.inject.mode != "none":
            found.append(("inject", config.injection))
            if config.injection in manifests.keys("verify"):
                found.append(("verify", config.injection))
        return found

    def check(self, config: Config) -> None:
        """Raise where a file cannot be read, or two checkpoints cannot be compared on held-out text."""
        _check(config)

    def identity(self, config: Config) -> Any:
        """Hashes of the rated files, and files of the further checkpoints."""
        files = {
            path: hashlib.sha256(storage.read_bytes(path)).hexdigest()
            for path in (*config.evaluate.similarity, *config.evaluate.analogies)
        }
        checkpoints = {
            name: [(info.path, info.size, info.mtime_ns) for info in storage.list_files(path)]
            for name, path in config.evaluate.checkpoints.items()
            if storage.exists(path)
        }
        return {"files": files, "checkpoints": checkpoints}

    def label(self, config: Config) -> str:
        """The name, and the mode of injection where there is one."""
        return self.name if config.inject.mode == "none" else f"{self.name}.{config.inject.mode}"

    def run(self, stage_run: StageRun) -> Outcome:
        """Measure, write the report, and refuse a clear regression where ``evaluate.gate`` asks for it."""
        return _run(stage_run, self.label(stage_run.context.config))


def batches(config: Config, manifests: ManifestStore) -> list[str]:
    """The batches whose held-out documents are used: those that were trained on."""
    return manifests.keys("corpus") if "all" in config.train.batches else list(config.train.batches)


def _compares_models(config: Config) -> bool:
    """Whether there are two checkpoints of one vocabulary: losses over different tokens are no comparison."""
    return config.inject.mode not in ("none", "extend", "trim") and config.evaluate.masked_lm


def _check(config: Config) -> None:
    for path in config.evaluate.similarity:
        read_pairs(path)
    for path in config.evaluate.analogies:
        read_questions(path)
    if not _compares_models(config):
        return
    reserved = {BEFORE, AFTER} & set(config.evaluate.checkpoints)
    if reserved:
        raise ConfigError(f"evaluate.checkpoints: {', '.join(sorted(reserved))} is the name of an arm; take another")
    for name, path in config.evaluate.checkpoints.items():
        if path.startswith((".", "/", "~")) and not storage.exists(path):
            raise InputError(f"evaluate.checkpoints.{name}: there is no checkpoint at {path}")
    if config.vocabulary.kind != "tokenizer" or config.vocabulary.tokenizer is None:
        raise ConfigError(
            f"evaluate.masked_lm needs vocabulary.kind: tokenizer and vocabulary.tokenizer, found kind "
            f"{config.vocabulary.kind!r}: masks are made with the tokenizer that was counted with; "
            "or set evaluate.masked_lm to false"
        )
    if config.corpus.held_out_fraction == 0:
        raise ConfigError(
            "evaluate.masked_lm needs documents that were not counted, but corpus.held_out_fraction is 0; "
            "set it to 0.02, or set evaluate.masked_lm to false"
        )
    special_ids(load_tokenizer(config.vocabulary.tokenizer))


def held_out_texts(context: Context, limit: int) -> list[str]:
    """Texts of at most `limit` held-out documents: those with the smallest hash of their id, in that order.

    Raises
    ------
    InputError
        There are none.
    """
    from pyspark.sql import functions as F

    chosen = []
    for batch in batches(context.config, context.manifests):
        frame = context.tables.read(schemas.DOCUMENTS, {"batch_id": batch}).where("held_out")
        keyed = frame.select(F.xxhash64(F.lit(context.config.seed), "doc_id").alias("key"), "doc_id", "text")
        chosen += keyed.orderBy("key", "doc_id").limit(limit).collect()
    chosen.sort(key=lambda row: (row["key"], row["doc_id"]))
    if not chosen:
        raise InputError(
            "no document was held out for the evaluation: the corpus is small for corpus.held_out_fraction "
            f"{context.config.corpus.held_out_fraction}; raise it, or set evaluate.masked_lm to false"
        )
    return [row["text"] for row in chosen[:limit]]


def model_directory(context: Context) -> str:
    """Where `inject` wrote its checkpoint."""
    output = context.config.inject.output
    return storage.absolute(output) if output else context.run.path(f"model-{context.config.inject.mode}")


def compare_models(context: Context, counts: np.ndarray) -> MaskedLmResult:
    """The checkpoint before and after injection, on the same held-out masks."""
    config, section = context.config, context.config.evaluate
    assert config.vocabulary.tokenizer is not None
    assert config.inject.checkpoint is not None
    before = config.inject.checkpoint
    loaded = load_tokenizer(config.vocabulary.tokenizer)
    special = special_ids(loaded)
    encoded = encode(loaded, held_out_texts(context, section.documents))
    pool = pack_sequences(encoded, special, section.sequence_length, limit=POOL * section.sequences, fair=True)
    if len(pool) == 0:
        raise InputError(
            f"{len(encoded)} held-out documents with {sum(map(len, encoded)):,} tokens do not fill one sequence of "
            f"{section.sequence_length}: lower evaluate.sequence_length or raise corpus.held_out_fraction"
        )
    task = make_masked_lm_task(
        pool,
        special,
        counts,
        config.seed,
        sequences=section.sequences,
        mask_fraction=section.mask_fraction,
        probe_targets=section.probe_targets,
    )
    after = storage.local_path(model_directory(context))
    fresh = config.inject.mode == "init"
    models: dict[str, Callable[[], Any]] = {
        BEFORE: partial(masked_lm_from_config, before, config.seed) if fresh else partial(load_masked_lm, before),
        AFTER: partial(load_masked_lm, after),
        **{name: partial(load_masked_lm, path) for name, path in section.checkpoints.items()},
    }
    return evaluate_masked_lm(
        task, models, resamples=section.bootstrap, seed=config.seed, batch_size=section.batch_size
    )


def score_files(
    config: Config, vectors: Vectors, controls: Mapping[str, np.ndarray]
) -> tuple[list[SimilarityResult], list[AnalogyResult], VectorGeometry]:
    """The vectors, and the controls in their place, on every file of the configuration."""
    section = config.evaluate
    files = [*section.similarity, *section.analogies]

    def scored(matrix: np.ndarray) -> list[SimilarityResult | AnalogyResult]:
        return score_vectors(
            vectors.tokens,
            matrix,
            files,
            counts=vectors.counts,
            search=section.search_vocabulary,
            resamples=section.bootstrap,
            seed=config.seed,
        )

    others = {name: scored(matrix) for name, matrix in controls.items()}
    similarities, analogies = [], []
    for place, item in enumerate(scored(vectors.matrix)):
        beside = {name: found[place] for name, found in others.items()}
        if isinstance(item, SimilarityResult):
            rhos = {name: found.rho for name, found in beside.items() if isinstance(found, SimilarityResult)}
            similarities.append(replace(item, controls=rhos))
        else:
            accuracies = {name: found.add for name, found in beside.items() if isinstance(found, AnalogyResult)}
            analogies.append(replace(item, controls=accuracies))
    unit = unit_rows(vectors.matrix)
    return similarities, analogies, vector_geometry(unit, vectors.matrix, vectors.counts, config.seed)


def make_controls(stage_run: StageRun, vectors: Vectors) -> dict[str, np.ndarray]:
    """The control vectors that the configuration names; none where there is no file to try them on."""
    config = stage_run.context.config
    section, seed = config.evaluate, config.seed
    if not (section.similarity or section.analogies):
        return {}
    makers: dict[str, Callable[[], np.ndarray]] = {
        "permuted": lambda: controls.permuted(vectors.matrix, vectors.counts, seed),
        "random": lambda: controls.random(vectors.matrix, vectors.counts, seed),
        "svd": lambda: controls.svd(stage_run.context, stage_run.outputs(TrainOutputs), vectors.matrix.shape[1]),
    }
    return {name: makers[name]() for name in section.controls}


def regressions(result: MaskedLmResult, margin: float) -> list[str]:
    """What is clearly worse after injection, in words: losses whose 95 % interval lies above `margin`."""
    found = []
    change = result.differences[AFTER]["nll"]
    if change.low > margin:
        found.append(f"masked-LM loss {signed(change.value)} {between(change, sign=True)} nats")
    for bucket in result.buckets:
        change = bucket.differences[AFTER]["nll"]
        if change.low > margin:
            found.append(
                f"{bucket.probe} probe of tokens seen {bucket.name} times {signed(change.value)} "
                f"{between(change, sign=True)} nats"
            )
    return found


def _run(stage_run: StageRun, label: str) -> Outcome:
    context = stage_run.context
    config = context.config
    vectors = read_vectors(context.tables, config.run_id, config.evaluate.combine)
    similarities, analogies, shape = score_files(config, vectors, make_controls(stage_run, vectors))
    masked = compare_models(context, vectors.counts) if _compares_models(config) else None
    data = report_data(stage_run, vectors, similarities, analogies, shape, masked)
    name = "report.html" if config.inject.mode == "none" else f"report-{config.inject.mode}.html"
    path = context.run.path(name)
    storage.write_bytes(path, render(data).encode())
    metrics = [*vector_metrics(similarities, analogies, shape), *(masked_metrics(masked) if masked else [])]
    summary = summary_lines(similarities, analogies, masked)
    worse = regressions(masked, config.evaluate.gate_margin) if masked and config.evaluate.gate else []
    if worse:
        write_metrics(context, label, metrics)
        raise GateError(
            f"evaluate: {model_directory(context)} is worse than {config.inject.checkpoint}: {'; '.join(worse)}. "
            f"Figures: {path}. Set evaluate.gate_margin to what is acceptable, or evaluate.gate to false",
            details={"regressions": worse, "report": path},
        )
    outputs: EvaluateOutputs = {"paths": [path], "report": path, "summary": summary}
    return Outcome(outputs, metrics, [*summary, f"report: {path}"])


def _metric(name: str, interval: Interval) -> Metric:
    def format_number(value: float) -> float | None:
        return value if np.isfinite(value) else None

    return Metric(name, interval.value, format_number(interval.low), format_number(interval.high))


def vector_metrics(
    similarities: Sequence[SimilarityResult], analogies: Sequence[AnalogyResult], shape: VectorGeometry
) -> list[Metric]:
    """Rows of the metrics table; what could not be measured is left out, its coverage says why."""
    metrics = []
    for item in similarities:
        metrics.append(Metric(f"similarity.{item.name}.coverage", item.covered / item.pairs))
        if np.isfinite(item.rho.value):
            metrics.append(_metric(f"similarity.{item.name}", item.rho))
            metrics += [_metric(f"similarity.{item.name}.{name}", rho) for name, rho in item.controls.items()]
    for questions in analogies:
        metrics.append(Metric(f"analogy.{questions.name}.coverage", questions.covered / questions.questions))
        if questions.covered:
            metrics.append(_metric(f"analogy.{questions.name}.3cosadd", questions.add))
            metrics.append(_metric(f"analogy.{questions.name}.3cosmul", questions.mul))
            metrics += [
                _metric(f"analogy.{questions.name}.{name}", found) for name, found in questions.controls.items()
            ]
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


def summary_lines(
    similarities: Sequence[SimilarityResult], analogies: Sequence[AnalogyResult], masked: MaskedLmResult | None
) -> list[str]:
    """What a person reads at the end of the stage."""
    lines = []
    for item in similarities:
        lines.append(
            f"{item.name}: Spearman {plain(item.rho.value)} {between(item.rho)}, {item.covered} of {item.pairs} pairs"
            + "".join(f", {name} {plain(rho.value)} {between(rho)}" for name, rho in item.controls.items())
        )
    for questions in analogies:
        lines.append(
            f"{questions.name}: 3CosAdd {plain(questions.add.value)} {between(questions.add)}, 3CosMul "
            f"{plain(questions.mul.value)} {between(questions.mul)}, {questions.covered} of {questions.questions}"
        )
    if masked is None:
        return lines
    words = {"better": "better", "worse": "worse", "unclear": "not distinguishable"}
    for arm, figures in masked.differences.items():
        difference = figures["nll"]
        lines.append(
            f"masked-LM loss {plain(masked.arms[masked.base]['nll'].value)} -> {plain(masked.arms[arm]['nll'].value)} "
            f"nats, difference {signed(difference.value)} {between(difference, sign=True)}: "
            f"{words[verdict(difference, 'nll')]}"
        )
    for bucket in masked.buckets:
        for arm, figures in bucket.differences.items():
            difference = figures["nll"]
            lines.append(
                f"{bucket.probe} probe, tokens seen {bucket.name} times ({bucket.types} types): loss "
                f"{plain(bucket.arms[masked.base]['nll'].value)} -> {plain(bucket.arms[arm]['nll'].value)}, difference "
                f"{signed(difference.value)} {between(difference, sign=True)}: {words[verdict(difference, 'nll')]}"
            )
    return lines


def read_metrics(context: Context) -> dict[str, list[dict[str, Any]]]:
    """The metrics of the run: stage -> rows with name, value, low, high, step."""
    found: dict[str, list[dict[str, Any]]] = {}
    for data_file in context.tables.files(schemas.METRICS, {"run_id": context.config.run_id}):
        part = data_file.read(["name", "value", "low", "high", "step"])
        found.setdefault(data_file.values["stage"], []).extend(part.to_pylist())
    return found


def _interval(row: Mapping[str, Any]) -> Interval:
    low, high = row["low"], row["high"]
    missing = low is None or high is None
    return Interval(row["value"], np.nan if missing else low, np.nan if missing else high, 0, 0)


def _points(rows: Sequence[Mapping[str, Any]]) -> list[SeriesPoint]:
    rows = sorted((row for row in rows if row["name"] == "loss" and row["step"] is not None), key=lambda r: r["step"])
    return [SeriesPoint(row["step"], row["value"], row["low"], row["high"]) for row in rows]


def report_data(
    stage_run: StageRun,
    vectors: Vectors,
    similarities: Sequence[SimilarityResult],
    analogies: Sequence[AnalogyResult],
    shape: VectorGeometry,
    masked: MaskedLmResult | None,
) -> ReportData:
    """Gather what the page shows from the manifests, the metrics and the results."""
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
        trainings=[Training(name.removeprefix(PRETRAIN_PREFIX), _points(rows)) for name, rows in trained.items()],
        training_differences=differences,
        similarity=similarities,
        analogies=analogies,
        geometry=shape,
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
    if config.evaluate.masked_lm and not _compares_models(config):
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
    for batch in batches(config, context.manifests):
        wanted += [(name, batch) for name in ("corpus", "vocabulary", "cooccurrence")]
    if config.inject.mode != "none":
        wanted += [(name, config.injection) for name in ("inject", "verify")]
    found = [context.manifests.find(name, key) for name, key in wanted]
    done = sorted(
        (manifest for manifest in found if manifest is not None and manifest.complete),
        key=lambda manifest: (manifest.finished_at or "", manifest.started_at),
    )
    several = len(batches(config, context.manifests)) > 1
    return [
        StageTime(
            f"{manifest.stage} {manifest.key}" if several and manifest.key not in keys.values() else manifest.stage,
            manifest.seconds or 0.0,
            _when(manifest.finished_at or ""),
            ", ".join(f"{name} {value}" for name, value in list(_scalars(manifest.outputs).items())[:6]),
        )
        for manifest in done
    ]
