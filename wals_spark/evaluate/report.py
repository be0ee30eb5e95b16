"""The report of a run: one self-contained HTML page from plain data; no Spark, no torch, no script."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from markupsafe import Markup, escape

from wals_spark.evaluate.charts import (
    IntervalRow,
    Series,
    SeriesPoint,
    bar_chart,
    format_number,
    interval_plot,
    line_chart,
)
from wals_spark.evaluate.intrinsic import AnalogyResult, SimilarityResult, VectorGeometry
from wals_spark.evaluate.masked_lm import LOWER_IS_BETTER, BucketResult, MaskedLmResult
from wals_spark.mlm.statistics import Interval

NOT_CLEAR = "not distinguishable"
NEGLIGIBLE = 5e-4
"""The smallest difference that is called one: what three decimals show."""
FIGURE_NAMES = {"nll": "loss, nats", "top1": "top-1 accuracy", "top5": "top-5 accuracy", "mrr": "mean reciprocal rank"}


@dataclass(frozen=True)
class StageTime:
    """A stage of the run: seconds, when it ended, and its facts in words."""

    name: str
    seconds: float
    finished_at: str
    facts: str


@dataclass(frozen=True)
class Training:
    """A masked-LM training run: its loss on unseen text by step."""

    name: str
    points: Sequence[SeriesPoint]


@dataclass(frozen=True)
class ReportData:
    """Everything the page shows.

    Attributes
    ----------
    run_id, mode, made_at, fingerprint : str
    subtitle : str
        One line that says what was run.
    loss : sequence of SeriesPoint
        Loss of the factorisation by half-sweep.
    objective : str
    trainings : sequence of Training
    training_differences : sequence of (label, Interval)
    similarity, analogies, geometry, combine
        Of the vectors.
    masked : MaskedLmResult or None
    neighbours : mapping
        Content of neighbours.json.
    injection : mapping of fact -> text
    stages : sequence of StageTime
    versions : mapping of package -> version
    configuration : str
        YAML.
    """

    run_id: str
    mode: str
    made_at: str
    fingerprint: str
    subtitle: str
    loss: Sequence[SeriesPoint] = ()
    objective: str = ""
    trainings: Sequence[Training] = ()
    training_differences: Sequence[tuple[str, Interval]] = ()
    similarity: Sequence[SimilarityResult] = ()
    analogies: Sequence[AnalogyResult] = ()
    geometry: VectorGeometry | None = None
    combine: str = "u"
    masked: MaskedLmResult | None = None
    neighbours: Mapping[str, Any] = field(default_factory=dict)
    injection: Mapping[str, str] = field(default_factory=dict)
    stages: Sequence[StageTime] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    configuration: str = ""


@dataclass(frozen=True)
class Section:
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


def verdict(difference: Interval, figure: str) -> str:
    """``better``, ``worse`` or ``unclear``: where the 95 % interval of after - before lies.

    What is smaller than `NEGLIGIBLE` is unclear, however narrow its interval.
    """
    if not difference.clear or abs(difference.value) < NEGLIGIBLE:
        return "unclear"
    return "better" if (difference.value < 0) == (figure in LOWER_IS_BETTER) else "worse"


def signed(value: float, digits: int = 3) -> str:
    """A difference with its sign, a true minus, and no ``-0.000``."""
    if not math.isfinite(value):
        return "–"
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return f"{'−' if value < 0 else '+'}{text}"


def plain(value: float, digits: int = 3) -> str:
    """A number with a true minus, or a dash where there is none."""
    if not math.isfinite(value):
        return "–"
    text = f"{abs(value):.{digits}f}"
    return f"−{text}" if value < 0 and float(text) != 0 else text


def between(interval: Interval, digits: int = 3, *, sign: bool = False) -> str:
    """The interval in brackets."""
    if not math.isfinite(interval.low):
        return ""
    show = signed if sign else plain
    return f"[{show(interval.low, digits)}, {show(interval.high, digits)}]"


CONTROLS = {"permuted": "rows permuted", "random": "random vectors", "svd": "truncated SVD"}


def _word(difference: Interval, figure: str) -> str:
    return {"better": "better", "worse": "worse", "unclear": NOT_CLEAR}[verdict(difference, figure)]


def _paragraph(text: str | Markup, kind: str = "lead") -> Markup:
    return Markup('<p class="{}">{}</p>').format(kind, text)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """A table; the first column is text, the others are numbers."""
    titles = Markup("").join(Markup("<th>{}</th>").format(title) for title in head)
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(
            Markup("").join(
                Markup('<th scope="row">{}</th>' if place == 0 else "<td>{}</td>").format(cell)
                for place, cell in enumerate(row)
            )
        )
        for row in rows
    )
    return Markup('<div class="scroll"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>').format(
        titles, body
    )


def _details(summary: str, body: Markup) -> Markup:
    return Markup("<details><summary>{}</summary>{}</details>").format(summary, body)


def masked_section(result: MaskedLmResult) -> Section:
    """Loss and accuracy of every arm on the same masks."""
    parts: list[Markup] = []
    for arm, figures in result.differences.items():
        difference = figures["nll"]
        parts.append(
            _paragraph(
                Markup(
                    "Loss on {:,} hidden tokens of {:,} held-out documents: {} → <strong>{}</strong> nats. {}: {} {}, "
                ).format(
                    result.targets,
                    result.documents,
                    plain(result.arms[result.base]["nll"].value),
                    plain(result.arms[arm]["nll"].value),
                    f"{arm.capitalize()} − {result.base}",
                    signed(difference.value),
                    between(difference, sign=True),
                )
                + Markup('<span class="chip {}">{}</span>.').format(
                    verdict(difference, "nll"), _word(difference, "nll")
                )
            )
        )
    head = ["", *result.arms, *[f"{arm} − {result.base}" for arm in result.differences], ""]
    rows = []
    for figure, name in FIGURE_NAMES.items():
        row = [name]
        row += [f"{plain(own[figure].value)} {between(own[figure])}" for own in result.arms.values()]
        row += [f"{signed(own[figure].value)} {between(own[figure], sign=True)}" for own in result.differences.values()]
        row.append(", ".join(_word(own[figure], figure) for own in result.differences.values()))
        rows.append(row)
    parts.append(_table(head, rows))
    parts.append(
        _paragraph(
            f"A model that knows token frequencies only would have {plain(result.unigram.value)} nats "
            f"{between(result.unigram)}. The masks are the same in every column; intervals are 95 %, "
            "resampled by document.",
            "quiet",
        )
    )
    return Section("masked-lm", "Masked language modelling", Markup("").join(parts))


PROBES = {
    "target": "The token itself is hidden: this tests its output row and the head bias.",
    "context": "A frequent token near it is hidden, it is shown: this tests its input row.",
}


def rare_section(result: MaskedLmResult) -> Section:
    """The probes by bucket of counts."""
    parts = [
        _paragraph(
            "Tokens by how often the counted corpus holds them. Left of the line is better: "
            "the model is less surprised by the right token."
        )
    ]
    for arm in result.differences:
        for probe, meaning in PROBES.items():
            buckets = [bucket for bucket in result.buckets if bucket.probe == probe]
            if not buckets:
                continue
            title = f"{arm.capitalize()} − {result.base}: " if len(result.differences) > 1 else ""
            parts.append(Markup("<h3>{}{}</h3>").format(title, meaning))
            parts.append(
                interval_plot([_bucket_row(b, arm) for b in buckets], zero=True, scale_label="change of loss, nats")
            )
            parts.append(_details("All figures", _bucket_table(buckets, arm, result.base)))
    parts.append(
        _paragraph(
            "Intervals are 95 %, resampled by token type. Buckets with fewer than 30 types are left out; "
            "a gain on rare tokens that costs frequent ones is a loss.",
            "quiet",
        )
    )
    return Section("rare", "Rare and frequent tokens", Markup("").join(parts))


def _bucket_row(bucket: BucketResult, arm: str) -> IntervalRow:
    difference = bucket.differences[arm]["nll"]
    return IntervalRow(
        label=f"seen {bucket.name.replace('-', '–')}×" if bucket.name != "0" else "never seen",
        note=f"{bucket.types:,} types",
        value=difference.value,
        low=difference.low,
        high=difference.high,
        text=f"{signed(difference.value)} {between(difference, sign=True)}",
        verdict=verdict(difference, "nll"),
    )


def _bucket_table(buckets: Sequence[BucketResult], arm: str, base: str) -> Markup:
    head = ["count", "types", "targets", f"loss, {base}", f"loss, {arm}", "change by type"]
    head += [f"top-1, {base}", f"top-1, {arm}", f"top-5, {base}", f"top-5, {arm}", "change of top-5"]
    rows = []
    for b in buckets:
        before, after, change = b.arms[base], b.arms[arm], b.differences[arm]
        rows.append(
            [
                b.name,
                f"{b.types:,}",
                f"{b.n:,}",
                plain(before["nll"].value),
                plain(after["nll"].value),
                f"{signed(change['macro_nll'].value)} {between(change['macro_nll'], sign=True)}",
                plain(before["top1"].value),
                plain(after["top1"].value),
                plain(before["top5"].value),
                plain(after["top5"].value),
                f"{signed(change['top5'].value)} {between(change['top5'], sign=True)}",
            ]
        )
    return _table(head, rows)


def training_section(data: ReportData) -> Section:
    """Loss curves of masked-LM training from different starts."""
    by_result = sorted(data.trainings, key=lambda training: -training.points[-1].y if training.points else 0.0)
    lines = [Series(training.name, training.points) for training in by_result]
    parts = [
        _paragraph(
            "Masked-LM loss on unseen text while training: same data, masks and schedule; only the start differs."
        ),
        line_chart(lines, x_label="steps", y_label="loss, nats", late=True),
    ]
    if data.training_differences:
        rows = [
            IntervalRow(
                label=label,
                value=difference.value,
                low=difference.low,
                high=difference.high,
                text=f"{signed(difference.value)} {between(difference, sign=True)}",
                verdict=verdict(difference, "nll"),
            )
            for label, difference in data.training_differences
        ]
        parts.append(Markup("<h3>Difference of the loss after the last step</h3>"))
        parts.append(interval_plot(rows, zero=True, scale_label="nats"))
    parts.append(_paragraph("Bands and intervals are 95 %, resampled by document. One seed each.", "quiet"))
    return Section("training", "Training from factors", Markup("").join(parts))


def intrinsic_section(data: ReportData) -> Section:
    """SimilarityResult, analogies and geometry of the vectors."""
    parts: list[Markup] = []
    if data.similarity:
        parts.append(_paragraph("Rank correlation (Spearman) of cosines with human ratings."))
        rows = []
        for item in data.similarity:
            rows.append(
                IntervalRow(
                    label=item.name,
                    note=f"{item.covered:,} of {item.pairs:,} pairs",
                    value=item.rho.value,
                    low=item.rho.low,
                    high=item.rho.high,
                    text=f"{plain(item.rho.value)} {between(item.rho)}",
                )
            )
            rows += [
                IntervalRow(
                    CONTROLS.get(name, name),
                    rho.value,
                    rho.low,
                    rho.high,
                    f"{plain(rho.value)} {between(rho)}",
                    "control",
                )
                for name, rho in item.controls.items()
            ]
        parts.append(interval_plot(rows, zero=True, scale_label="Spearman's ρ"))
        missing = [item.name for item in data.similarity if not math.isfinite(item.rho.value)]
        if missing:
            parts.append(_paragraph(f"Too few pairs covered: {', '.join(missing)}.", "quiet"))
    for questions in data.analogies:
        parts.append(Markup("<h3>Analogies: {}</h3>").format(questions.name))
        if not questions.covered:
            parts.append(_paragraph("No question is covered by the vocabulary.", "quiet"))
            continue
        beside = "".join(
            f" {CONTROLS.get(name, name).capitalize()}: {plain(found.value)} {between(found)}."
            for name, found in questions.controls.items()
        )
        parts.append(
            _paragraph(
                f"{questions.covered:,} of {questions.questions:,} questions covered. 3CosAdd "
                f"{plain(questions.add.value)} {between(questions.add)}, 3CosMul {plain(questions.mul.value)} "
                f"{between(questions.mul)}.{beside}"
            )
        )
        by_section = [[name, f"{n:,}", plain(add), plain(mul)] for name, (n, add, mul) in questions.sections.items()]
        parts.append(_details("By section", _table(["section", "questions", "3CosAdd", "3CosMul"], by_section)))
    if data.geometry is not None and math.isfinite(data.geometry.mean_cosine):
        shape = data.geometry
        parts.append(Markup("<h3>Shape</h3>"))
        parts.append(
            _paragraph(
                f"Mean cosine of random pairs {plain(shape.mean_cosine)}; effective rank {shape.effective_rank:.1f}; "
                f"the strongest direction holds {100 * shape.first_share:.1f} % of the variance "
                f"({shape.tokens:,} tokens)."
            )
        )
    kinds = {"u": "U", "v": "V", "sum": "U + V", "concat": "[U, V]"}
    parts.append(
        _paragraph(f"Vectors: {kinds.get(data.combine, data.combine)}. Intervals are 95 % bootstrap.", "quiet")
    )
    return Section("vectors", "Word vectors", Markup("").join(parts))


def neighbours_section(neighbours: Mapping[str, Any]) -> Section:
    """The lists of nearest neighbours as cards."""
    cards = []
    for item in neighbours["lists"]:
        entries = Markup("").join(
            Markup('<li><span>{}</span><i style="width:{:.1f}%"></i><b>{}</b></li>').format(
                found["shown"], 100 * max(0.0, found["cosine"]), f"{found['cosine']:.2f}"
            )
            for found in item["neighbours"]
        )
        cards.append(
            Markup('<div class="card"><h3>{} <small>{:,}×</small></h3><ol>{}</ol></div>').format(
                item["shown"], item["count"], entries
            )
        )
    legend = "Numbers are cosines; × is how often the corpus holds the token."
    if neighbours.get("style") in ("byte_level", "sentencepiece", "wordpiece"):
        legend += " … marks a piece that continues a word, ␣ a space."
    return Section(
        "neighbours",
        "Nearest neighbours",
        Markup('<div class="cards">{}</div>').format(Markup("").join(cards)) + _paragraph(legend, "quiet"),
    )


def loss_section(data: ReportData) -> Section:
    """The objective by half-sweep."""
    first, last = data.loss[0].y, data.loss[-1].y
    ratio = last / first if first else float("nan")
    log = first > 0 and last > 0 and first / last > 20
    return Section(
        "factorisation",
        "Factorisation",
        _paragraph(
            f"The true objective ({data.objective or 'over every cell, observed or not'}) after each half-sweep: "
            f"{format_number(first)} → {format_number(last)}, {100 * ratio:.1f} % of the first."
        )
        + line_chart([Series("loss", data.loss)], x_label="half-sweep", y_label="loss", y_log=log),
    )


def run_section(data: ReportData) -> Section:
    """What ran: stages, injection, versions, configuration."""
    parts: list[Markup] = []
    if data.injection:
        rows = Markup("").join(
            Markup("<dt>{}</dt><dd>{}</dd>").format(name, value) for name, value in data.injection.items()
        )
        parts.append(Markup("<h3>Injection</h3><dl>{}</dl>").format(rows))
    if data.stages:
        total = sum(stage.seconds for stage in data.stages)
        parts.append(Markup("<h3>Time by stage <small>{} together</small></h3>").format(seconds(total)))
        parts.append(bar_chart([(stage.name, stage.seconds, seconds(stage.seconds)) for stage in data.stages]))
        facts = [[stage.name, stage.facts, stage.finished_at] for stage in data.stages]
        parts.append(_details("What each stage made", _table(["stage", "result", "finished"], facts)))
    versions = Markup(" · ").join(
        Markup("{} <b>{}</b>").format(name, version) for name, version in data.versions.items()
    )
    parts.append(Markup('<h3>Versions</h3><p class="versions">{}</p>').format(versions))
    if data.configuration:
        parts.append(_details("Configuration", Markup("<pre>{}</pre>").format(data.configuration)))
    return Section("run", "The run", Markup("").join(parts))


def seconds(value: float) -> str:
    """A duration for people."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def tiles(data: ReportData) -> list[Tile]:
    """The figures to see first: at most six."""
    found: list[Tile] = []
    if data.masked is not None:
        for arm, figures in data.masked.differences.items():
            difference = figures["nll"]
            found.append(
                Tile(
                    f"masked-LM loss, {arm} − {data.masked.base}",
                    signed(difference.value),
                    f"{between(difference, sign=True)} nats, {_word(difference, 'nll')}",
                    verdict(difference, "nll"),
                )
            )
    for label, difference in data.training_differences:
        found.append(
            Tile(
                label,
                signed(difference.value),
                f"{between(difference, sign=True)} nats after training, {_word(difference, 'nll')}",
                verdict(difference, "nll"),
            )
        )
    for item in data.similarity:
        if math.isfinite(item.rho.value):
            found.append(Tile(item.name, plain(item.rho.value), f"{between(item.rho)} Spearman's ρ"))
    for questions in data.analogies:
        if questions.covered:
            note = f"{between(questions.add)} 3CosAdd"
            found.append(Tile(f"analogies, {questions.name}", plain(questions.add.value), note))
    if data.loss:
        first, last = data.loss[0].y, data.loss[-1].y
        note = f"from {format_number(first)} in {len(data.loss)} half-sweeps"
        found.append(Tile("factorisation loss", format_number(last), note))
    if data.stages:
        found.append(Tile("all stages", seconds(sum(stage.seconds for stage in data.stages))))
    return found[:6]


def sections(data: ReportData) -> list[Section]:
    """The parts that there is something to show of, in order."""
    found = []
    if data.masked is not None:
        found.append(masked_section(data.masked))
        if data.masked.buckets:
            found.append(rare_section(data.masked))
    if data.trainings:
        found.append(training_section(data))
    if data.similarity or data.analogies or data.geometry is not None:
        found.append(intrinsic_section(data))
    if data.neighbours.get("lists"):
        found.append(neighbours_section(data.neighbours))
    if data.loss:
        found.append(loss_section(data))
    found.append(run_section(data))
    return found


def render(data: ReportData) -> str:
    """The page as HTML."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    package = resources.files("wals_spark.evaluate")
    style = package.joinpath("report.css").read_text(encoding="utf-8")
    template = environment.from_string(package.joinpath("report.html").read_text(encoding="utf-8"))
    return template.render(
        data=data,
        style=Markup(style),
        tiles=tiles(data),
        sections=sections(data),
        title=escape(f"wals_spark: {data.run_id}"),
    )
