"""The demonstration from beginning to end; what is done already is not done again."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wals_spark import storage
from wals_spark.config import Config
from wals_spark.demo import corpus, model, settings, training
from wals_spark.evaluate.number_format import (
    VERDICT_WORDS,
    format_difference,
    format_duration,
    format_estimate,
    verdict,
)
from wals_spark.factors.stages import NEIGHBOURS_FILE
from wals_spark.factors.store import read_tokens
from wals_spark.mlm.statistics import Clusters, Interval
from wals_spark.pipeline import run_stages
from wals_spark.stage import Context
from wals_spark.stage_outputs import EvaluateOutputs, InjectOutputs, require_outputs

logger = logging.getLogger(__name__)

VECTOR_STAGES = ("corpus", "vocabulary", "cooccurrence", "train", "export", "neighbours")


def run_demo(directory: str) -> None:
    """Corpus, vectors, two ways to use them, a report; prints what came out.

    Everything goes below `directory`; a second call finds it there and ends in seconds.

    Parameters
    ----------
    directory : made where it is missing
    """
    started = time.monotonic()
    directory = storage.absolute(directory)
    storage.make_directory(directory)
    facts, fresh = make_inputs(directory)
    config = settings.demo_config(directory)
    ran = list(run_stages(config, VECTOR_STAGES))
    initial = settings.demo_config(directory, inject__mode="init")
    ran += run_stages(initial, ("inject", "verify"))
    curves, differences, trained, clusters = train_arms(directory, initial)
    blended = settings.demo_config(
        directory,
        inject__mode="blend",
        inject__checkpoint=training.arm_directory(os.path.join(directory, settings.TRAINED), training.RANDOM),
        inject__force=True,  # the demonstration shows the figures whatever the gate says, and what it said
    )
    ran += run_stages(blended, ("inject", "verify"))
    ran += run_stages(blended, ("evaluate",), force=bool(trained))
    _say(_summary(blended, facts, curves, differences, clusters))
    done = [*(["inputs"] if fresh else []), *ran, *trained]
    if done:
        _say(f"Took {format_duration(time.monotonic() - started)}. Run it again: what is done is reused.")
    else:
        _say(f"Nothing was left to do; took {format_duration(time.monotonic() - started)}.")


def make_inputs(directory: str) -> tuple[dict[str, Any], bool]:
    """Corpus, tokenizer and model configuration; returns the corpus' facts and whether they were made now."""
    marker = os.path.join(directory, "inputs.json")
    expected: dict[str, Any] = {"packages": corpus.versions(corpus.PACKAGES), "vocabulary": model.VOCABULARY}
    if storage.exists(marker):
        facts: dict[str, Any] = storage.read_json(marker)
        if {name: facts.get(name) for name in expected} == expected:
            return facts, False
    corpus.require(corpus.PACKAGES)
    path = os.path.join(directory, settings.CORPUS)
    logger.info("demo: reading the docstrings of %s", ", ".join(expected["packages"]))
    facts = {**corpus.write_corpus(path, corpus.PACKAGES), **expected}
    logger.info("demo: training a tokenizer of %d tokens", model.VOCABULARY)
    start = os.path.join(directory, settings.START)
    model.train_tokenizer(corpus.read_corpus(path), start, model.VOCABULARY)
    model.model_config(model.VOCABULARY).save_pretrained(start)
    storage.write_json(marker, facts)
    return facts, True


def train_arms(
    directory: str, config: Config
) -> tuple[dict[str, training.ArmResult], dict[tuple[str, str], Interval], list[str], Clusters]:
    """Train the arms that are not trained yet; returns curves, final differences, which ran, and the clusters."""
    context = Context(config)
    try:
        data = training.read_data(context, model.LENGTH)
        _, counts = read_tokens(context.tables, config.run_id)
        injected = require_outputs(context.manifests, InjectOutputs, f"{config.run_id}.init")
        curves, ran = {}, []
        for arm in training.ARMS:
            curves[arm], new = training.train_arm(
                arm,
                training.arm_directory(os.path.join(directory, settings.TRAINED), arm),
                data,
                start=os.path.join(directory, settings.START),
                initial=injected["directory"],
                counts=np.asarray(counts),
                initial_hash=injected["injection_sha256"],
                seed=config.seed,
            )
            ran += [arm] if new else []
        clusters = Clusters(data.unseen.document, config.evaluate.bootstrap, config.seed)
        if ran:
            differences = training.report_metrics(context, curves, data)
        else:
            differences = training.final_differences(curves, clusters, training.PAIRS)
    finally:
        context.stop()
    return curves, differences, ran, clusters


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in plain text; the first column to the left, the others to the right."""
    widths = [max(len(row[place]) for row in [head, *rows]) for place in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [head, ["-" * width for width in widths], *rows]
    ]
    return "\n".join(lines)


def _gate_lines(gate: Mapping[str, Any] | None) -> list[str]:
    """What the gate of the injection said, where it was asked."""
    if not gate or not gate.get("reason"):
        return []
    return [f"  gate of the blend: {'passed' if gate.get('passed') else 'not passed, forced here'}: {gate['reason']}"]


def _summary(
    config: Config,
    facts: Mapping[str, Any],
    curves: Mapping[str, training.ArmResult],
    differences: Mapping[tuple[str, str], Interval],
    clusters: Clusters,
) -> str:
    context = Context(config)
    neighbours = storage.read_json(context.run.path(NEIGHBOURS_FILE))
    evaluated = require_outputs(context.manifests, EvaluateOutputs, f"{config.run_id}.blend")
    steps = training.SCHEDULE.steps
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    training_rows = []
    for arm, curve in curves.items():
        last = clusters.mean(curve.nll[-1])
        training_rows.append([arm, format_estimate(last), f"{curve.seconds:.0f} s"])
    difference_rows = [
        [
            f"{after} − {before}",
            format_difference(found),
            VERDICT_WORDS[verdict(found, "nll")],
        ]
        for (after, before), found in differences.items()
    ]
    parts = [
        "",
        f"Corpus: docstrings of {packages}: {facts['documents']:,} files, {facts['characters']:,} characters.",
        "",
        "Nearest neighbours by cosine of the WALS vectors:",
        *(f"  {item['shown']:<16} {', '.join(n['shown'] for n in item['neighbours'])}" for item in neighbours["lists"]),
        "",
        f"A RoBERTa of {model.LAYERS} x {model.WIDTH} after {steps} steps of masked-LM training, "
        "loss on unseen text, nats [95 %]:",
        table(["start", "loss", "trained in"], training_rows),
        "",
        table(["difference", "nats", ""], difference_rows),
        "",
        f"Blend of the factors into the model that started from {training.RANDOM}, before and after:",
        *(f"  {line}" for line in evaluated["summary"]),
        *_gate_lines(require_outputs(context.manifests, InjectOutputs, f"{config.run_id}.blend").get("gate")),
        "",
        f"Report: {evaluated['report']}",
    ]
    return "\n".join(parts)
