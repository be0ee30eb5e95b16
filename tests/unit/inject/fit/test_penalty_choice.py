"""The rule that chooses a penalty on held-out text."""

from __future__ import annotations

import numpy as np
import pytest

from wals_spark.inject.fit.penalty_choice import HeldOutLoss, choose_ridge, held_out_gain, ridge_grid, still_falls

DOCUMENTS = np.repeat(np.arange(40), 10)


def fit(ridge: float, mean: float, noise: float = 0.0, general: float | None = None) -> HeldOutLoss:
    generator = np.random.default_rng(0)
    losses = mean + noise * generator.standard_normal(len(DOCUMENTS))
    return HeldOutLoss(ridge, losses, None if general is None else np.full(50, general))


def test_the_grid_goes_from_strong_to_weak():
    assert ridge_grid(2350.0) == pytest.approx((2901.2, 1044.4, 299.7), abs=0.1)


@pytest.mark.parametrize(
    ("means", "chosen"),
    [((2.0, 1.9, 1.8), 2), ((2.0, 1.9, 1.95), 1), ((1.902, 1.9, 1.95), 0), ((1.8,), 0), ((1.9, 1.9, 1.9), 0)],
)
def test_the_strongest_that_is_hardly_worse_than_the_best_is_taken(means, chosen):
    tried = [fit(10.0 ** (3 - number), mean) for number, mean in enumerate(means)]
    assert choose_ridge(tried, DOCUMENTS, 0, None) == chosen


def test_a_difference_within_its_interval_does_not_weaken_the_penalty():
    generator = np.random.default_rng(1)
    best = HeldOutLoss(100.0, 1.9 + generator.standard_normal(len(DOCUMENTS)))
    other = HeldOutLoss(1000.0, 1.92 + generator.standard_normal(len(DOCUMENTS)))
    assert choose_ridge([other, best], DOCUMENTS, 0, None) == 0


def test_a_penalty_that_harms_general_text_is_passed_over():
    tried = [fit(1000.0, 2.0, general=2.5), fit(300.0, 1.9, general=2.52)]
    assert choose_ridge(tried, DOCUMENTS, 0, np.full(50, 2.5)) == 0
    assert choose_ridge(tried, DOCUMENTS, 0, np.full(50, 2.515)) == 1


def test_trying_ends_where_the_loss_rises():
    assert still_falls([fit(1000.0, 2.0)])
    assert still_falls([fit(1000.0, 2.0), fit(300.0, 1.9)])
    assert not still_falls([fit(1000.0, 2.0), fit(300.0, 2.1)])


def test_the_gain_is_that_over_the_base_with_its_interval():
    gain = held_out_gain(
        fit(1000.0, 2.0, general=2.4), np.full(len(DOCUMENTS), 2.3), DOCUMENTS, 0, np.full(50, 2.5), np.arange(50)
    )
    assert gain.domain.value == pytest.approx(0.3)
    assert gain.general is not None
    assert gain.general.value == pytest.approx(0.1)
    assert gain.to_json()["gain"]["documents"] == 40
