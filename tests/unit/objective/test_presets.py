"""Presets: what they are does not change, or checkpoints of a training would no longer fit it."""

from __future__ import annotations

import pytest

from wals_spark.config import fingerprint
from wals_spark.objective import PRESETS, TARGETS, WEIGHTS, Objective
from wals_spark.objective.presets import SOURCES

FINGERPRINTS = {
    "ppmi": "7d566156acbae2e0",
    "sppmi": "51025753b9b4f3e1",
    "pu": "37ee81917be576fa",
    "glove": "8261f3b614ed22da",
    "log_conditional": "d23be0bc1f81c060",
    "log_conditional_smoothed": "f2c553e19cda59d1",
    "swivel_like": "c5ae42a88c85f64d",
    "swivel": "1fc6173e34f1b926",
    "squared_norm": "dcec3ab46360599a",
    "implicit": "cce78925a67d052d",
    "ials": "7f13d3a16f878320",
    "explicit": "2b5732cab445b53d",
    "custom": "e1731e4df91f0785",
}
"""Of `Objective.to_dict`, as checkpoints hold them since version 0.1."""


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_a_preset_has_the_fingerprint_that_checkpoints_hold(name: str) -> None:
    assert fingerprint(PRESETS[name].to_dict()) == FINGERPRINTS[name]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_reads_back_from_its_plain_values(name: str) -> None:
    assert Objective(**PRESETS[name].to_dict()) == PRESETS[name]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_where_its_defaults_are_from(name: str) -> None:
    assert SOURCES[name]


def test_every_target_and_weight_is_of_a_preset() -> None:
    assert {preset.target for preset in PRESETS.values()} == set(TARGETS)
    assert {preset.weight for preset in PRESETS.values()} == set(WEIGHTS)
