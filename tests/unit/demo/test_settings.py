from __future__ import annotations

from pathlib import Path

from wals_spark.config import load_config
from wals_spark.demo.settings import demo_config

ROOT = Path(__file__).resolve().parents[3]


def test_the_shown_configuration_is_the_one_that_runs():
    assert load_config(ROOT / "conf" / "demo.yaml").dump() == demo_config("demo").dump()


def test_overrides_reach_their_section():
    assert demo_config("d", inject__mode="blend").inject.mode == "blend"
