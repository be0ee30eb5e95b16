"""Objectives from the keys of a configuration."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any, Protocol

from wals_spark.errors import ConfigError
from wals_spark.objective.keys import Key, keys_of
from wals_spark.objective.objective import Objective
from wals_spark.objective.presets import DEPENDENT, PRESETS
from wals_spark.objective.targets import TARGETS
from wals_spark.objective.weights import WEIGHTS

KEY_ORDER = (
    "regularization",
    "regularization_exponent",
    "rho",
    "popularity_exponent",
    "popularity_floor",
    "x_max",
    "weight_exponent",
    "context_smoothing",
    "alpha",
    "shift",
    "bias",
)
"""The order in which the configuration lists keys; others follow."""


class HasObjectiveKeys(Protocol):
    """The section ``train`` of a configuration: a preset's name, and a value or None of each key."""

    @property
    def objective(self) -> str: ...


def configuration_keys() -> dict[str, Key]:
    """Name -> key, of the objective itself and of every registered target and weight."""
    declared: dict[str, Key] = {}
    classes: list[type] = [Objective, *WEIGHTS.values(), *TARGETS.values()]
    for cls in classes:
        declared.update(keys_of(cls))
    listed = [name for name in KEY_ORDER if name in declared]
    return {name: declared[name] for name in [*listed, *(name for name in declared if name not in listed)]}


def from_config(config: HasObjectiveKeys) -> Objective:
    """The preset of the configuration with the keys that it sets.

    Raises
    ------
    ConfigError
        A key is set that the preset does not use, or there is neither regularisation nor an unobserved weight.
    """
    given = {name: value for name in configuration_keys() if (value := getattr(config, name)) is not None}
    objective = make_objective(config.objective, **given)
    if objective.rho == 0 and objective.regularization == 0:
        raise ConfigError(
            f"objective {objective.name!r}: regularization and rho are both 0, so a row with fewer cells than k has no "
            "unique solution; set train.regularization or train.rho above 0"
        )
    return objective


def make_objective(preset: str, **given: Any) -> Objective:
    """A preset with some of its fields changed.

    Raises
    ------
    ConfigError
        An unknown preset, or a field that it does not use.
    """
    if preset not in PRESETS:
        raise ConfigError(f"objective: found {preset!r}, expected one of {', '.join(PRESETS)}")
    base, keys = PRESETS[preset], configuration_keys()
    for name in keys:
        if name in given and name not in base.keys:
            raise ConfigError(f"train.{name} is set, but the objective {preset!r} does not use it; remove it")
    values = {**asdict(base), **given}
    for name, follows in DEPENDENT[preset].items():
        if name in given:
            values.update(follows(given[name]))
    own = {field.name for field in fields(Objective)}
    parameters = {name: values.pop(name) for name in keys if name in values and name not in own}
    return Objective(**{**values, "parameters": {**values["parameters"], **parameters}})
