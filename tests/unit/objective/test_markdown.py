"""The tables of docs/objectives.md."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import wals_spark
from wals_spark.errors import InputError
from wals_spark.objective import PRESETS, TARGETS, WEIGHTS
from wals_spark.objective.markdown import BEGIN, END, objectives_markdown, preset_cells, with_objectives

PAGE = Path(wals_spark.__file__).parents[1] / "docs" / "objectives.md"


def test_the_page_is_current() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert with_objectives(text) == text, "run make docs"


def test_every_preset_target_and_weight_has_a_row_of_fewer_than_120_characters() -> None:
    lines = objectives_markdown().splitlines()
    for name in (*PRESETS, *TARGETS, *WEIGHTS):
        assert any(line.startswith(f"| `{name}` |") for line in lines), name
    assert max(map(len, lines)) < 120


def test_a_row_shows_the_values_of_the_preset() -> None:
    changed = replace(PRESETS["pu"], shift=3.0, x_max=7.0, popularity_exponent=0.5, popularity_floor=0.1)
    assert preset_cells(changed) == (
        "`pu`",
        "PMI - ln 3, cds 0.75, clipped at 0 (unobserved)",
        "min(x/7, 1)^0.75",
        "rho 0.0625, exponent 0.5, floor 0.1",
        "0.000488281 n_i",
        "free",
    )


def test_only_the_marked_part_of_a_page_is_replaced() -> None:
    page = with_objectives(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert page == f"before\n{BEGIN}\n\n{objectives_markdown()}\n{END}\nafter\n"


def test_a_page_without_the_marks_is_refused() -> None:
    with pytest.raises(InputError, match="no part between the lines"):
        with_objectives("nothing\n")
