"""Messages in the words of the estimator."""

from __future__ import annotations

import pytest

from wals_spark.errors import InputError
from wals_spark.objective import configuration_keys
from wals_spark.wals.estimator.messages import PARAMETERS, in_own_words, own_words
from wals_spark.wals.estimator.params import PARAMETER_NAMES


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("raise train.regularization or lower train.k", "raise regParam or lower rank"),
        ("raise train.rho", "raise objectiveParams['rho']"),
        ("try train.precision: float64 (now float32)", "try precision: float64 (now float32)"),
        ("set train.workers=3, or lower spark.task.cpus", "set numWorkers=3, or lower spark.task.cpus"),
        ("lower train.k, or set cooccurrence.min_pair_count to drop rare pairs, or x", "lower rank, or x"),
        ("nothing of it", "nothing of it"),
    ],
)  # fmt: skip
def test_keys_become_parameters(message: str, expected: str) -> None:
    assert own_words(message) == expected


def test_every_key_of_an_objective_is_a_parameter_or_in_its_parameters() -> None:
    for key in configuration_keys():
        assert "train." not in own_words(f"set train.{key}")
    assert set(PARAMETERS.values()) - set(PARAMETER_NAMES) == {PARAMETERS["scratch"]}


def test_rows_become_ids_of_users_and_items() -> None:
    message = "side col: 2 rows have no unique solution (ids 0, 3): fewer cells than factors"
    expected = "2 items have no unique solution (ids 700, 703): fewer cells than factors"
    assert own_words(message, lambda side, numbers: {n: n + 700 for n in numbers if side == "col"}) == expected


def test_an_error_keeps_its_type_and_traceback() -> None:
    with pytest.raises(InputError, match="rank is 3") as caught, in_own_words():
        raise InputError("train.k is 3")
    assert caught.traceback[-1].name == "test_an_error_keeps_its_type_and_traceback"
