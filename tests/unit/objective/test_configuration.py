"""Objectives from keys."""

from __future__ import annotations

import pytest

from wals_spark.config import TrainConfig
from wals_spark.errors import ConfigError
from wals_spark.objective import PRESETS, configuration_keys, from_config, make_objective

USERS_OF_KEYS = {
    "x_max": {"ppmi", "pu", "glove", "log_conditional", "log_conditional_smoothed", "squared_norm"},
    "weight_exponent": {"ppmi", "pu", "glove", "log_conditional", "log_conditional_smoothed", "squared_norm"},
    "context_smoothing": {"ppmi", "sppmi", "pu", "swivel_like"},
    "shift": {"ppmi", "sppmi", "pu", "swivel_like", "log_conditional_smoothed"},
    "alpha": {"implicit"},
    "rho": set(PRESETS) - {"swivel", "squared_norm"},
    "popularity_exponent": set(PRESETS) - {"swivel", "squared_norm"},
    "popularity_floor": set(PRESETS) - {"swivel", "squared_norm"},
}
"""Key -> the presets that use it; the keys left out are of all of them."""


@pytest.mark.parametrize("key", configuration_keys())
def test_a_key_is_accepted_by_the_presets_that_use_it_and_by_no_other(key: str) -> None:
    users = {name for name, preset in PRESETS.items() if key in preset.keys}
    assert users == USERS_OF_KEYS.get(key, set(PRESETS))
    for name, preset in PRESETS.items():
        value = getattr(preset, key)
        if name in users:
            assert getattr(make_objective(name, **{key: value}), key) == value
        else:
            with pytest.raises(ConfigError, match=f"train.{key} is set, but the objective '{name}' does not use it"):
                make_objective(name, **{key: value})


def test_the_target_of_ials_follows_rho() -> None:
    assert make_objective("ials", rho=0.25).scale == 1.0 / 1.25


def test_an_unknown_preset_is_refused_with_the_known_names() -> None:
    with pytest.raises(ConfigError, match=r"found 'als', expected one of ppmi, sppmi, .*, custom"):
        make_objective("als")


def test_a_configuration_without_regularisation_is_refused() -> None:
    with pytest.raises(ConfigError, match="regularization and rho are both 0"):
        from_config(TrainConfig(objective="glove", regularization=0.0))


@pytest.mark.parametrize(("preset", "bias"), [("swivel", "free"), ("ppmi", "fixed"), ("custom", "fixed")])
def test_biases_are_refused_where_there_are_none(preset: str, bias: str) -> None:
    with pytest.raises(ConfigError, match=r"remove train\.bias"):
        make_objective(preset, bias=bias)
