from __future__ import annotations

import json

import numpy as np

from wals_spark.inject.loss_search import best_strength, grid_search


def test_the_best_strength_must_be_clearly_better_than_nothing():
    documents = np.repeat(np.arange(50), 4)
    noise = np.random.default_rng(0).normal(0, 1, 200)
    unclear = best_strength({0.0: np.zeros(200), 0.5: noise - noise.mean() - 0.01}, documents, 1)
    clear = best_strength({0.0: np.zeros(200), 0.5: 0.1 * noise - 0.5, 1.0: 0.1 * noise - 0.2}, documents, 1)
    assert unclear.best == 0.0
    assert clear.best == 0.5
    assert clear.gain.low > 0.4
    assert json.dumps(clear.to_json())


def test_a_grid_search_evaluates_all_but_zero_and_returns_the_best_loss():
    documents, zero = np.repeat(np.arange(50), 4), np.full(200, 3.0)
    asked = []

    def loss_at(strength):
        asked.append(strength)
        return zero - (0.5 if strength == 0.25 else -1.0)

    found, loss = grid_search((0.0, 0.25, 0.5), zero, loss_at, documents, 1)
    assert asked == [0.25, 0.5]
    assert found.best == 0.25
    assert found.losses == {0.0: 3.0, 0.25: 2.5, 0.5: 4.0}
    assert loss.tolist() == [2.5] * 200


def test_a_grid_search_without_a_gain_returns_the_loss_at_zero():
    zero = np.full(200, 3.0)
    found, loss = grid_search((0.0, 1.0), zero, lambda strength: zero + strength, np.repeat(np.arange(50), 4), 1)
    assert found.best == 0.0
    assert loss is zero
