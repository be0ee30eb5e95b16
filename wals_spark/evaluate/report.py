"""The report of a run: one self-contained HTML page from plain data; no Spark, no torch, no script.

This module prepares what the templates in ``templates/`` write down: the figures to see first, the sections that
there is something to show of, the rows of their tables and the layout of their charts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from wals_spark.evaluate.charts import IntervalPlot, IntervalRow, Series, bar_chart, interval_plot, line_chart
from wals_spark.evaluate.masked_lm import BucketResult, MaskedLmResult
from wals_spark.evaluate.number_format import (
    VERDICT_WORDS,
    format_bounds,
    format_difference,
    format_duration,
    format_estimate,
    format_number,
    format_signed,
    format_value,
    verdict,
)
from wals_spark.evaluate.report_content import ReportData
from wals_spark.mlm.statistics import Interval

METRIC_NAMES = {"nll": "loss, nats", "top1": "top-1 accuracy", "top5": "top-5 accuracy", "mrr": "mean reciprocal rank"}
CONTROLS = {"permuted": "rows permuted", "random": "random vectors", "svd": "truncated SVD"}
PROBES = {
    "target": "The token itself is hidden: this tests its output row and the head bias.",
    "context": "A frequent token near it is hidden, it is shown: this tests its input row.",
}
TILES = 6
"""Figures at the top of the page at most."""
LOG_FROM = 20
"""The loss of the factorisation is drawn on a logarithmic scale where it falls by more than this factor."""


@dataclass(frozen=True)
class ReportSection:
    """A titled part of the page."""

    anchor: str
    title: str
    body: Markup


@dataclass(frozen=True)
class Tile:
    """A number at the top of the page."""

    label: str
    value: str
    note: str = ""
    verdict: str = ""


@cache
def environment() -> Environment:
    """The templates with their filters; text from data is escaped."""
    found = Environment(
        loader=PackageLoader("wals_spark.evaluate"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(
        value=format_value,
        bounds=format_bounds,
        estimate=format_estimate,
        difference=format_difference,
        number=format_number,
        duration=format_duration,
        thousands="{:,}".format,
    )
    found.globals.update(verdict=verdict, verdict_words=VERDICT_WORDS, control_names=CONTROLS)
    return found


def render_report(data: ReportData) -> str:
    """The page as HTML."""
    return environment().get_template("report.html.j2").render(data=data, tiles=tiles(data), sections=sections(data))


def sections(data: ReportData) -> list[ReportSection]:
    """The parts that there is something to show of, in order."""
    result = data.masked
    found: list[ReportSection] = []

    def add(anchor: str, title: str, template: str, values: Mapping[str, Any]) -> None:
        body = environment().get_template(f"sections/{template}.html.j2").render(data=data, **values)
        found.append(ReportSection(anchor, title, Markup(body)))

    if result is not None:
        add("masked-lm", "Masked language modelling", "masked_lm", masked_lm_values(result))
        if result.buckets:
            add("rare", "Rare and frequent tokens", "rare", {"probes": probe_values(result)})
    if data.trainings:
        add("training", "Training from factors", "training", training_values(data))
    if data.similarity or data.analogies or data.geometry is not None:
        add("vectors", "Word vectors", "vectors", vector_values(data))
    if data.neighbours.get("lists"):
        add("neighbours", "Nearest neighbours", "neighbours", {})
    if data.loss:
        add("factorisation", "Factorisation", "factorisation", factorisation_values(data))
    add("run", "The run", "run", run_values(data))
    return found


def masked_lm_values(result: MaskedLmResult) -> dict[str, Any]:
    """Loss and accuracy of every arm on the same masks."""
    rows = []
    for metric, name in METRIC_NAMES.items():
        changes = [metrics[metric] for metrics in result.differences.values()]
        rows.append(
            [
                name,
                *(format_estimate(metrics[metric]) for metrics in result.arms.values()),
                *(format_difference(change) for change in changes),
                ", ".join(VERDICT_WORDS[verdict(change, metric)] for change in changes),
            ]
        )
    head = ["", *result.arms, *(f"{arm} − {result.base}" for arm in result.differences), ""]
    return {"result": result, "head": head, "rows": rows}


def probe_values(result: MaskedLmResult) -> list[dict[str, Any]]:
    """Per arm and probe: a plot of the change by bucket of counts, and all figures."""
    found = []
    for arm in result.differences:
        for probe, meaning in PROBES.items():
            buckets = [bucket for bucket in result.buckets if bucket.probe == probe]
            if not buckets:
                continue
            title = f"{arm.capitalize()} − {result.base}: " if len(result.differences) > 1 else ""
            rows = [_bucket_interval(bucket, arm) for bucket in buckets]
            found.append(
                {
                    "title": f"{title}{meaning}",
                    "plot": interval_plot(rows, zero=True, scale_label="change of loss, nats"),
                    "head": _bucket_head(arm, result.base),
                    "rows": [_bucket_cells(bucket, arm, result.base) for bucket in buckets],
                }
            )
    return found


def _bucket_interval(bucket: BucketResult, arm: str) -> IntervalRow:
    label = f"seen {bucket.name.replace('-', '–')}×" if bucket.name != "0" else "never seen"
    return difference_row(label, bucket.differences[arm]["nll"], note=f"{bucket.types:,} types")


def _bucket_head(arm: str, base: str) -> list[str]:
    head = ["count", "types", "targets", f"loss, {base}", f"loss, {arm}", "change by type"]
    return [*head, f"top-1, {base}", f"top-1, {arm}", f"top-5, {base}", f"top-5, {arm}", "change of top-5"]


def _bucket_cells(bucket: BucketResult, arm: str, base: str) -> list[str]:
    before, after, change = bucket.arms[base], bucket.arms[arm], bucket.differences[arm]
    return [
        bucket.name,
        f"{bucket.types:,}",
        f"{bucket.n:,}",
        format_value(before["nll"].value),
        format_value(after["nll"].value),
        format_difference(change["macro_nll"]),
        format_value(before["top1"].value),
        format_value(after["top1"].value),
        format_value(before["top5"].value),
        format_value(after["top5"].value),
        format_difference(change["top5"]),
    ]


def difference_row(label: str, difference: Interval, *, note: str = "") -> IntervalRow:
    """A difference of losses as a row of an interval plot."""
    return IntervalRow(
        label=label,
        note=note,
        value=difference.value,
        low=difference.low,
        high=difference.high,
        text=format_difference(difference),
        verdict=verdict(difference, "nll"),
    )


def training_values(data: ReportData) -> dict[str, Any]:
    """Loss curves of masked-LM training from different starts, and the differences at their ends."""
    by_result = sorted(data.trainings, key=lambda training: -training.points[-1].y if training.points else 0.0)
    lines = [Series(training.name, training.points) for training in by_result]
    rows = [difference_row(label, difference) for label, difference in data.training_differences]
    return {
        "curves": line_chart(lines, x_label="steps", y_label="loss, nats", late=True),
        "differences": interval_plot(rows, zero=True, scale_label="nats") if rows else None,
    }


def vector_values(data: ReportData) -> dict[str, Any]:
    """Similarity, analogies and geometry of the vectors."""
    shape = data.geometry
    return {
        "similarity": similarity_plot(data),
        "too_few": [item.name for item in data.similarity if not math.isfinite(item.rho.value)],
        "by_section": [
            [[name, f"{n:,}", format_value(add), format_value(mul)] for name, (n, add, mul) in file.sections.items()]
            for file in data.analogies
        ],
        "shape": shape if shape is not None and math.isfinite(shape.mean_cosine) else None,
    }


def similarity_plot(data: ReportData) -> IntervalPlot | None:
    """Spearman's rho of every file, its controls below it."""
    rows = []
    for item in data.similarity:
        rows.append(_rho_row(item.name, item.rho, note=f"{item.covered:,} of {item.pairs:,} pairs"))
        rows += [_rho_row(CONTROLS.get(name, name), rho, kind="control") for name, rho in item.controls.items()]
    return interval_plot(rows, zero=True, scale_label="Spearman's ρ")


def _rho_row(label: str, rho: Interval, *, kind: str = "", note: str = "") -> IntervalRow:
    return IntervalRow(label, rho.value, rho.low, rho.high, format_estimate(rho), kind, note)


def factorisation_values(data: ReportData) -> dict[str, Any]:
    """The objective by half-sweep."""
    first, last = data.loss[0].y, data.loss[-1].y
    log = first > 0 and last > 0 and first / last > LOG_FROM
    return {
        "first": first,
        "last": last,
        "percent": 100 * (last / first if first else float("nan")),
        "curve": line_chart([Series("loss", data.loss)], x_label="half-sweep", y_label="loss", y_log=log),
    }


def run_values(data: ReportData) -> dict[str, Any]:
    """The stages that ran: their times and facts."""
    return {
        "times": bar_chart([(stage.name, stage.seconds, format_duration(stage.seconds)) for stage in data.stages]),
        "facts": [[stage.name, stage.facts, stage.finished_at] for stage in data.stages],
    }


def tiles(data: ReportData) -> list[Tile]:
    """The figures to see first: at most `TILES`."""
    found = [*_loss_tiles(data), *_vector_tiles(data)]
    if data.loss:
        first, last = data.loss[0].y, data.loss[-1].y
        note = f"from {format_number(first)} in {len(data.loss)} half-sweeps"
        found.append(Tile("factorisation loss", format_number(last), note))
    if data.stages:
        found.append(Tile("all stages", format_duration(sum(stage.seconds for stage in data.stages))))
    return found[:TILES]


def _loss_tiles(data: ReportData) -> list[Tile]:
    found = []
    if data.masked is not None:
        for arm, metrics in data.masked.differences.items():
            found.append(_difference_tile(f"masked-LM loss, {arm} − {data.masked.base}", metrics["nll"], "nats"))
    for label, difference in data.training_differences:
        found.append(_difference_tile(label, difference, "nats after training"))
    return found


def _difference_tile(label: str, difference: Interval, unit: str) -> Tile:
    kind = verdict(difference, "nll")
    note = f"{format_bounds(difference, sign=True)} {unit}, {VERDICT_WORDS[kind]}"
    return Tile(label, format_signed(difference.value), note, kind)


def _vector_tiles(data: ReportData) -> list[Tile]:
    found = []
    for item in data.similarity:
        if math.isfinite(item.rho.value):
            found.append(Tile(item.name, format_value(item.rho.value), f"{format_bounds(item.rho)} Spearman's ρ"))
    for file in data.analogies:
        if file.covered:
            note = f"{format_bounds(file.add)} 3CosAdd"
            found.append(Tile(f"analogies, {file.name}", format_value(file.add.value), note))
    return found
