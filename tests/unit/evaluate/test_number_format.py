from __future__ import annotations

import pytest

from wals_spark.evaluate.number_format import (
    format_bounds,
    format_difference,
    format_duration,
    format_estimate,
    format_number,
    format_signed,
    format_value,
    verdict,
)
from wals_spark.mlm.statistics import Interval


def interval(value, half=0.1):
    return Interval(value, value - half, value + half, 100, 40)


@pytest.mark.parametrize(
    ("value", "figure", "expected"),
    [
        (-0.3, "nll", "better"),
        (0.3, "nll", "worse"),
        (0.3, "top1", "better"),
        (-0.3, "top1", "worse"),
        (0.05, "nll", "unclear"),
    ],
)
def test_verdicts_know_which_way_is_better(value, figure, expected):
    assert verdict(interval(value), figure) == expected


def test_a_change_too_small_to_show_is_no_change():
    assert verdict(Interval(-1e-6, -2e-6, -1e-7, 100, 40), "nll") == "unclear"
    assert verdict(Interval(-6e-4, -7e-4, -5e-4, 100, 40), "nll") == "better"


def test_numbers_are_written_with_a_true_minus_and_no_negative_zero():
    assert format_signed(-0.3) == "−0.300"
    assert format_signed(0.3) == "+0.300"
    assert format_signed(-0.0001) == "0.000"
    assert format_signed(float("nan")) == "–"
    assert [format_value(value) for value in (-0.3, -0.0001, 2.0, float("nan"))] == ["−0.300", "0.000", "2.000", "–"]
    assert format_bounds(interval(0.0), sign=True) == "[−0.100, +0.100]"
    assert format_bounds(Interval(1.0, float("nan"), float("nan"), 1, 1)) == ""


@pytest.mark.parametrize(("value", "text"), [(3.21, "3.2 s"), (75, "1 min 15 s"), (7300, "2 h 01 min")])
def test_durations(value, text):
    assert format_duration(value) == text


def test_an_estimate_and_a_difference_carry_their_intervals():
    assert format_estimate(interval(2.0)) == "2.000 [1.900, 2.100]"
    assert format_difference(interval(-0.3)) == "−0.300 [−0.400, −0.200]"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1234.0, "1,234"), (-0.25, "−0.25"), (2.5e7, "25 M"), (1234567.0, "1.235 M"), (3e12, "3e12")],
)
def test_numbers_are_short(value, text):
    assert format_number(value) == text
