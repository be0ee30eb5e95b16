"""The rules for a loss near nothing, by hand."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

from wals_spark.cluster.process_group import LocalGroup
from wals_spark.objective import PRESETS
from wals_spark.wals.engine.convergence import DivergedError, check_loss, has_converged, without_rounding
from wals_spark.wals.engine.rank import run


@pytest.mark.parametrize(("loss", "expected"), [(-1e-4, 0.0), (-1e-2, -1e-2), (0.0, 0.0), (3.0, 3.0)])
def test_a_loss_that_is_negative_by_rounding_is_nothing(loss, expected) -> None:
    assert without_rounding(loss, [500.0], "float32", 500.0) == expected


@pytest.mark.parametrize(
    ("loss", "expected"), [(1.0 + 1e-3, False), (1.0 + 9e-3, False), (1.5, DivergedError), (np.nan, DivergedError)]
)
def test_a_loss_far_from_its_floor_may_rise_by_rounding_only(loss, expected) -> None:
    if expected is DivergedError:
        with pytest.raises(DivergedError):
            check_loss(loss, [9.0, 1.0], "float32", 3, 1000.0)
    else:
        assert check_loss(loss, [1e4, 1.0], "float32", 3, 0.0) is expected


def test_a_loss_that_rises_at_its_floor_ends_the_training_with_a_warning(caplog) -> None:
    with caplog.at_level(logging.WARNING):
        assert check_loss(0.05, [1000.0, 0.001], "float32", 3, 1000.0)
    assert "rounding in float32" in caplog.text


@pytest.mark.parametrize(("tolerance", "expected"), [(0.0, False), (1e-4, True)])
def test_a_loss_of_nothing_has_converged(tolerance, expected) -> None:
    assert has_converged([5.0, 1.0, 0.0, 0.0], tolerance) is expected


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_an_exact_fit_without_regularisation_has_no_negative_loss(make_task, precision) -> None:
    rng = np.random.default_rng(0)
    counts = np.outer(rng.integers(1, 30, 20), rng.integers(1, 30, 15))
    objective = replace(PRESETS["explicit"], regularization=0.0)
    task = make_task(counts, objective=objective, k=1, sweeps=30, precision=precision)
    losses = run(task, LocalGroup())["losses"]
    assert min(losses) >= 0
    assert losses[-1] < 1e-5 * losses[0] + 1e-3
