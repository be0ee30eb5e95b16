from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from wals_spark.evaluate.charts import SeriesPoint
from wals_spark.evaluate.intrinsic import AnalogyResult, SimilarityResult, VectorGeometry
from wals_spark.evaluate.masked_lm import BucketResult, MaskedLmResult
from wals_spark.evaluate.report import render_report
from wals_spark.evaluate.report_content import ReportData, StageTime, TrainingCurve
from wals_spark.mlm.statistics import Interval

VOID = {"meta", "line", "polyline", "polygon", "br"}


class Balanced(HTMLParser):
    """Fails on a tag that is closed in the wrong place."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.links: set[str] = set()

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids |= {found["id"]} if "id" in found else set()
        self.links |= {found["href"]} if tag == "a" else set()
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"


def interval(value, half=0.1):
    return Interval(value, value - half, value + half, 100, 40)


@pytest.fixture
def masked():
    figures = {name: interval(2.0) for name in ("nll", "top1", "top5", "mrr")}
    change = {name: interval(-0.3) for name in ("nll", "top1", "top5", "mrr", "macro_nll")}
    arms, changes = {"before": figures, "after": figures}, {"after": change}
    buckets = [
        BucketResult(probe, name, 40, 90, arms, changes) for probe in ("target", "context") for name in ("0", "1-4")
    ]
    return MaskedLmResult("before", 1000, 40, 60, interval(7.0), arms, changes, buckets)


@pytest.fixture
def full(masked):
    return ReportData(
        run_id="demo",
        mode="blend",
        made_at="2026-01-01",
        fingerprint="abc",
        subtitle="8,192 vectors.",
        loss=[SeriesPoint(1, 100.0), SeriesPoint(2, 60.0)],
        objective="ppmi",
        trainings=[
            TrainingCurve(name, [SeriesPoint(0, 9, 8.9, 9.1), SeriesPoint(10, 7, 6.9, 7.1)])
            for name in ("random", "factors")
        ],
        training_differences=[("factors − random", interval(-0.2))],
        similarity=[SimilarityResult("WS-353", interval(0.6), 353, 300)],
        analogies=[AnalogyResult("google", interval(0.5), interval(0.6), 100, 80, {"capitals": (80, 0.5, 0.6)})],
        geometry=VectorGeometry(0.05, 60.0, 0.1, 8000),
        masked=masked,
        neighbours={
            "style": "byte_level",
            "lists": [{"shown": "river", "count": 12, "neighbours": [{"shown": "<lake>", "cosine": 0.8}]}],
        },
        injection={"checkpoint": "model"},
        stages=[StageTime("corpus", 1.0, "now", "documents 10")],
        versions={"python": "3.11"},
        configuration="a: <b>\n",
    )


def parse(page):
    checker = Balanced()
    checker.feed(page)
    assert checker.open == []
    return checker


def test_the_page_is_well_formed_and_every_link_leads_somewhere(full):
    checker = parse(render_report(full))
    anchors = {"masked-lm", "rare", "training", "vectors", "neighbours", "factorisation", "run"}
    assert checker.ids == anchors
    assert {link.removeprefix("#") for link in checker.links} == anchors


def test_the_page_needs_nothing_from_outside(full):
    page = render_report(full)
    assert not re.search(r"https?://|src=|@import|url\(|<script|<link", page)


def test_text_from_data_is_escaped(full):
    page = render_report(full)
    assert "&lt;lake&gt;" in page
    assert "<lake>" not in page
    assert "a: &lt;b&gt;" in page


def test_the_page_says_what_is_better_and_what_is_not_distinguishable(full, masked):
    page = render_report(full)
    assert "−0.300" in page
    assert 'class="chip better">better' in page
    unclear = {name: interval(-0.05) for name in ("nll", "top1", "top5", "mrr", "macro_nll")}
    same = ReportData(
        **{**full.__dict__, "masked": MaskedLmResult(**{**masked.__dict__, "differences": {"after": unclear}})}
    )
    assert 'class="chip unclear">not distinguishable' in render_report(same)


def test_a_run_without_evaluation_has_a_page_too():
    page = render_report(ReportData("r", "none", "now", "abc", "nothing"))
    assert parse(page).ids == {"run"}


def variables(rules):
    """Custom properties of CSS rules: name -> value."""
    return dict(re.findall(r"--([a-z0-9-]+):\s*([^;}]+)", rules))


def test_every_colour_is_defined_for_light_and_dark(full):
    style = re.search(r"<style>(.*?)</style>", render_report(full), re.DOTALL)[1]
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    assert style.index("prefers-color-scheme: dark") < style.index(dark)
    assert set(variables(light)) == set(variables(dark))
    assert all(value != variables(dark)[name] for name, value in variables(light).items())
    assert set(re.findall(r"var\(--([a-z0-9-]+)\)", style)) == set(variables(light))


def test_the_page_fits_the_width_of_the_device(full):
    assert 'content="width=device-width' in render_report(full)


def test_every_class_of_the_page_has_a_rule(full):
    page = render_report(full)
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]
    used = {name for names in re.findall(r'class="([^"]*)"', page) for name in names.split()}
    assert used <= set(re.findall(r"\.([a-zA-Z][\w-]*)", style))
