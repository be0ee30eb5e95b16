"""Tables and the picture of a comparison's results."""

from __future__ import annotations

import pytest
from injection_report import BANDS, draw, markdown, mean


def line(arm, seed=0, gain=0.2, general=-0.1, **more):
    """A line of results made by hand."""

    def interval(value):
        return {"value": value, "low": value - 0.05, "high": value + 0.05, "targets": 90, "documents": 9}

    return {
        "arm": arm, "seed": seed, "checkpoint": "tiny", "adapted": False, "sequences": 500, "domain": "law",
        "loss": 2.0, "general_loss": 2.5, "gain": interval(gain), "general": interval(general), "accuracy_1": 0.5,
        "accuracy_10": 0.75, "forward_equivalents": 4.0, "bands": {band: interval(gain) for band in BANDS}, **more,
    }  # fmt: skip


def test_one_seed_is_shown_with_its_interval_by_document():
    table = markdown([line("fit-4", lambda_rows=1044.4, seconds={"states": 5.0, "fit": 2.0})])
    expected = "| fit-4 | 4 | +0.200 [+0.150, +0.250] | -0.100 [-0.150, -0.050] | 0.500 / 0.750 | 1044 | 5.0 + 2.0 |"
    assert expected in table.splitlines()


def test_several_seeds_are_shown_as_their_mean_with_the_range():
    table = markdown([line("fit-4", seed, gain) for seed, gain in enumerate((0.1, 0.2, 0.3))])
    assert "| +0.200 [+0.100, +0.300] |" in table
    assert "3 seeds" in table


def test_an_arm_without_a_line_has_empty_cells():
    other = line("full-1") | {"domain": "medicine"}
    (row,) = [row for row in markdown([line("bias"), other]).splitlines() if row.startswith("| bias | 4 |")]
    assert row.endswith("|  |  |  |  |  |")


def test_plain_and_adapted_bases_have_tables_of_their_own():
    table = markdown([line("bias"), line("bias", adapted=True)])
    assert table.count("### tiny, plain base, 500 sequences") == 1
    assert table.count("### tiny, adapted base, 500 sequences") == 1


def test_a_figure_that_no_line_has_is_not_a_number():
    assert str(mean([line("full-1")], "seconds", "fit")) == "nan"


@pytest.mark.parametrize("end", ["png", "svg"])
def test_a_picture_is_drawn(tmp_path, end):
    pytest.importorskip("matplotlib")
    draw([line("base", gain=0.0, general=0.0), line("fit-1"), line("fit-4", gain=0.3)], tmp_path / f"plot.{end}")
    assert (tmp_path / f"plot.{end}").stat().st_size > 5000
