"""The stage ``evaluate``: vectors on rated files, checkpoints before and after, one report."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from wals_spark import storage
from wals_spark.config import Config
from wals_spark.errors import ConfigError, GateError, InputError
from wals_spark.evaluate.before_after import AFTER, BEFORE, compare_models, compares_models, trained_batches
from wals_spark.evaluate.intrinsic import read_pairs, read_questions
from wals_spark.evaluate.metrics import masked_metrics, vector_metrics
from wals_spark.evaluate.report import render_report
from wals_spark.evaluate.report_data import report_data
from wals_spark.evaluate.summary import regressions, summary_lines
from wals_spark.evaluate.vector_scores import make_controls, score_files
from wals_spark.factors.store import read_vectors
from wals_spark.mlm.data import special_ids
from wals_spark.runs import ManifestStore
from wals_spark.stage import Outcome, Stage, StageRun, write_metrics
from wals_spark.stage_outputs import EvaluateOutputs, InjectOutputs, TrainOutputs
from wals_spark.tokenizer import load_tokenizer


class EvaluateStage(Stage):
    """Vectors on rated files, checkpoints before and after, one report."""

    name = "evaluate"
    sections = ("evaluate",)

    def key(self, config: Config) -> str:
        """The run id, and the mode of injection where there is one."""
        return config.injection

    def inputs(self, config: Config, manifests: ManifestStore) -> Sequence[tuple[str, str]]:
        """The factors and the corpus; neighbours, injection and its proof where they are there."""
        found = [("train", config.run_id), *(("corpus", batch) for batch in trained_batches(config, manifests))]
        if config.run_id in manifests.keys("neighbours"):
            found.append(("neighbours", config.run_id))
        if config.inject.mode != "none":
            found.append(("inject", config.injection))
            if config.injection in manifests.keys("verify"):
                found.append(("verify", config.injection))
        return found

    def check(self, config: Config) -> None:
        """Raise where a file cannot be read, or two checkpoints cannot be compared on held-out text."""
        for path in config.evaluate.similarity:
            read_pairs(path)
        for path in config.evaluate.analogies:
            read_questions(path)
        if not compares_models(config):
            return
        reserved = {BEFORE, AFTER} & set(config.evaluate.checkpoints)
        if reserved:
            raise ConfigError(
                f"evaluate.checkpoints: {', '.join(sorted(reserved))} is the name of an arm; take another"
            )
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
        context = stage_run.context
        config = context.config
        vectors = read_vectors(context.tables, config.run_id, config.evaluate.combine)
        controls = make_controls(context, stage_run.outputs(TrainOutputs), vectors)
        scores = score_files(config, vectors, controls)
        injected = stage_run.outputs(InjectOutputs)["directory"] if compares_models(config) else None
        masked = compare_models(context, vectors.counts, injected) if injected else None
        data = report_data(stage_run, vectors, scores, masked)
        name = "report.html" if config.inject.mode == "none" else f"report-{config.inject.mode}.html"
        path = context.run.path(name)
        storage.write_bytes(path, render_report(data).encode())
        metrics = [*vector_metrics(scores), *(masked_metrics(masked) if masked else [])]
        summary = summary_lines(scores, masked)
        worse = regressions(masked, config.evaluate.gate_margin) if masked and config.evaluate.gate else []
        if worse:
            write_metrics(context, self.label(config), metrics)
            raise GateError(
                f"evaluate: {injected} is worse than {config.inject.checkpoint}: {'; '.join(worse)}. "
                f"Figures: {path}. Set evaluate.gate_margin to what is acceptable, or evaluate.gate to false",
                details={"regressions": worse, "report": path},
            )
        outputs: EvaluateOutputs = {"paths": [path], "report": path, "summary": summary}
        return Outcome(outputs, metrics, [*summary, f"report: {path}"])
