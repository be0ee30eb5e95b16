from __future__ import annotations

import math

import pytest

from wals_spark.evaluate import charts
from wals_spark.evaluate.charts import IntervalRow, Series, SeriesPoint, ticks
from wals_spark.evaluate.report import environment


def drawn(macro, layout):
    return getattr(environment().get_template("charts.html.j2").module, macro)(layout)


def line_chart(series, **options):
    return drawn("line_chart", charts.line_chart(series, **options))


def interval_plot(rows, **options):
    return drawn("interval_plot", charts.interval_plot(rows, **options))


def bar_chart(rows):
    return drawn("bar_chart", charts.bar_chart(rows))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (0.1, 0.36, [0.1, 0.15, 0.2, 0.25, 0.3, 0.35]), (-1, 1, [-1, -0.5, 0, 0.5, 1])],
)
def test_ticks_are_round_numbers_inside(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_ticks_of_nothing():
    assert ticks(math.nan, 1) == []
    assert ticks(2, 2) == [2]


def test_a_line_chart_places_the_extremes_inside_the_frame():
    page = line_chart([Series("a", [SeriesPoint(0, 1.0), SeriesPoint(10, 3.0)])], x_label="steps", y_label="loss")
    assert 'style="left:0.00%;top:94.64%"' in page
    assert 'style="left:100.00%;top:5.36%"' in page
    assert "legend" not in page


def test_bands_and_a_legend_come_with_intervals_and_several_lines():
    lines = [Series(name, [SeriesPoint(0, 1, 0.9, 1.1), SeriesPoint(1, 2, 1.9, 2.1)]) for name in "ab"]
    page = line_chart(lines, x_label="x", y_label="y")
    assert page.count("<polygon") == 2
    assert page.count('class="key') == 2
    assert "a, x 0: 1 [0.9, 1.1]" in page


def test_names_are_escaped():
    evil = '<script>"&'
    pages = [
        line_chart([Series(evil, [SeriesPoint(0, 1), SeriesPoint(1, 2)])] * 2, x_label=evil, y_label=evil),
        interval_plot([IntervalRow(evil, 1, 0, 2, evil, note=evil)], zero=True, scale_label=evil),
        bar_chart([(evil, 1.0, evil)]),
    ]
    for page in pages:
        assert "<script" not in page
        assert "&lt;script&gt;&#34;&amp;" in page


def test_numbers_that_are_none_are_left_out():
    assert "Nothing was measured" in line_chart([Series("a", [SeriesPoint(0, math.nan)])], x_label="x", y_label="y")
    assert "Nothing was measured" in interval_plot([IntervalRow("a", math.nan, 0, 1, "")], zero=False, scale_label="")
    page = interval_plot([IntervalRow("a", 1.0, math.nan, math.nan, "")], zero=False, scale_label="")
    assert "bar" not in page.split("axis")[0]


def test_a_constant_line_and_a_single_point_can_be_drawn():
    assert "nan" not in line_chart([Series("a", [SeriesPoint(0, 2.0), SeriesPoint(1, 2.0)])], x_label="x", y_label="y")
    assert "nan" not in line_chart([Series("a", [SeriesPoint(3, 0.0)])], x_label="x", y_label="y")


def test_a_logarithmic_axis_leaves_out_what_is_not_positive():
    page = line_chart(
        [Series("a", [SeriesPoint(0, 1000), SeriesPoint(1, 1), SeriesPoint(2, 0)])],
        x_label="x",
        y_label="y",
        y_log=True,
    )
    assert page.count('class="dot') == 2
    assert ">100<" in page


def test_a_late_scale_cuts_off_the_start_and_says_so():
    lines = [Series(name, [SeriesPoint(0, 9.0), SeriesPoint(1, 2.0), SeriesPoint(2, 1.0)]) for name in "ab"]
    page = line_chart(lines, x_label="x", y_label="y", late=True)
    assert page.count('class="dot') == 4
    assert "9 → 1" in page
    assert ">8<" not in page


def test_zero_is_marked_where_asked_for():
    rows = [IntervalRow("a", 2.0, 1.0, 3.0, "")]
    assert 'class="zero"' in interval_plot(rows, zero=True, scale_label="")
    assert 'class="zero"' not in interval_plot(rows, zero=False, scale_label="")
