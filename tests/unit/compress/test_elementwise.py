from __future__ import annotations

import numpy as np
import pytest
from oracles.wals import DenseProblem, half_step, loss

from wals_spark.compress import closed_form, elementwise

V, D, R = 40, 7, 3
RIDGE = 1e-3


@pytest.fixture
def X():
    return np.random.default_rng(0).standard_normal((V, D))


@pytest.fixture
def weights():
    return np.random.default_rng(1).gamma(0.3, size=(V, D)) + 0.05


def run(X, weights, start, **settings):
    options = {"sweeps": 4, "ridge": RIDGE, "tolerance": 0.0, "precision": "float64", "threads": 2, **settings}
    return elementwise.weighted_least_squares(X, weights, start, **options)


@pytest.mark.slow
def test_the_engine_equals_its_reference_with_a_weight_per_entry(X, weights):
    start = np.random.default_rng(2).standard_normal((R, D))
    problem = DenseProblem(X, weights, np.full(V, RIDGE), np.full(D, RIDGE), False)
    v, losses = start.T, []
    for _ in range(4):
        u, _ = half_step(problem, v, np.zeros(D))
        losses.append(loss(problem, u, v, np.zeros(V), np.zeros(D)))
        v, _ = half_step(problem.transposed, u, np.zeros(V))
        losses.append(loss(problem, u, v, np.zeros(V), np.zeros(D)))
    found = run(X, weights, start)
    np.testing.assert_allclose(found.losses, losses, rtol=1e-10)
    np.testing.assert_allclose(found.rows @ found.basis, u @ v.T, atol=1e-8)


def test_equal_weights_stay_at_the_svd(X):
    form = closed_form.solve_closed_form(X)
    found = run(X - form.mean, np.ones_like(X), form.decode[:R], ridge=1e-9)
    A, B = form.factors(X, R)
    np.testing.assert_allclose(found.rows @ found.basis, A @ B, atol=1e-7)


def test_it_beats_the_closed_form_of_the_mean_weights_at_its_own_objective(X, weights):
    form = closed_form.solve_closed_form(X, weights.mean(axis=1))
    centred = X - form.mean
    A, B = form.factors(X, R)
    before = float((weights * (centred - A @ B) ** 2).sum())
    found = run(centred, weights, B, sweeps=10)
    assert float((weights * (centred - found.rows @ found.basis) ** 2).sum()) < 0.95 * before


@pytest.mark.slow
def test_high_ranks_go_by_conjugate_gradients_and_the_loss_still_falls(X, weights, monkeypatch):
    start = closed_form.solve_closed_form(X, weights.mean(axis=1)).decode[:R]
    exact = run(X, weights, start, sweeps=15)
    monkeypatch.setattr(elementwise, "EXACT_UP_TO", 2)
    found = run(X, weights, start, sweeps=15)
    assert (np.diff(found.losses) <= 1e-9 * found.losses[0]).all()
    assert found.losses[-1] == pytest.approx(exact.losses[-1], rel=1e-3)


def test_the_tolerance_ends_it_after_a_whole_sweep(X, weights):
    found = run(X, weights, np.eye(D)[:R], sweeps=50, tolerance=0.05)
    assert len(found.losses) % 2 == 0
    assert len(found.losses) < 30
