from __future__ import annotations

import numpy as np
import pytest
from oracles.wals import DenseProblem, half_step, loss

from wals_spark.compress.alternating import alternate
from wals_spark.wals.engine.initial_factors import initial_factors

V, D, R = 50, 9, 3


@pytest.fixture
def X():
    generator = np.random.default_rng(0)
    return generator.standard_normal((V, D)) @ np.diag(np.arange(1.0, D + 1))


def test_sweeps_are_those_of_plain_wals(X):
    ridge = 0.5
    problem = DenseProblem(X, np.ones_like(X), np.full(V, ridge), np.full(D, ridge), False)
    v = initial_factors(4, "col", np.arange(D), R)
    losses = []
    for _ in range(5):
        u, _ = half_step(problem, v, np.zeros(D))
        losses.append(loss(problem, u, v, np.zeros(V), np.zeros(D)))
        v, _ = half_step(problem.transposed, u, np.zeros(V))
        losses.append(loss(problem, u, v, np.zeros(V), np.zeros(D)))
    u, _ = half_step(problem, v, np.zeros(D))
    losses.append(loss(problem, u, v, np.zeros(V), np.zeros(D)))
    found = alternate(X.T @ X, R, sweeps=5, ridge=ridge, tolerance=0, seed=4)
    np.testing.assert_allclose(found.losses, losses, rtol=1e-11)
    np.testing.assert_allclose(X @ found.transform @ found.basis, u @ v.T, atol=1e-9)


def test_error_and_bound_are_those_of_the_matrices(X):
    found = alternate(X.T @ X, R, sweeps=3, ridge=0.7, tolerance=0)
    error = float(((X - X @ found.transform @ found.basis) ** 2).sum())
    assert found.error == pytest.approx(error, rel=1e-12)
    assert found.bound == pytest.approx(float((np.linalg.svd(X, compute_uv=False)[R:] ** 2).sum()), rel=1e-12)
    assert found.error > found.bound


def test_a_hundred_sweeps_end_just_above_the_svd_and_never_below(X):
    found = alternate(X.T @ X, R, sweeps=100, ridge=1e-4, tolerance=0.0)
    assert len(found.losses) == 201
    assert (np.diff(found.losses) <= 1e-12 * found.losses[0]).all()
    assert -1e-13 < found.error / found.bound - 1 < 1e-8


def test_the_tolerance_ends_it_early(X):
    found = alternate(X.T @ X, R, sweeps=100, ridge=1e-4, tolerance=1e-3)
    assert len(found.losses) < 60
    assert found.error / found.bound - 1 < 1e-2
