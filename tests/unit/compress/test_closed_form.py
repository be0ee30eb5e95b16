from __future__ import annotations

import numpy as np
import pytest
from oracles.wals import DenseProblem, half_step

from wals_spark.compress import closed_form

V, D = 60, 8


@pytest.fixture
def E():
    generator = np.random.default_rng(0)
    return (generator.standard_normal((V, D)) @ generator.standard_normal((D, D)) + 3).astype(np.float32)


@pytest.fixture
def weights():
    return np.random.default_rng(1).zipf(1.5, V).clip(0, 1000).astype(np.float64)


@pytest.fixture
def metric():
    hidden = np.random.default_rng(2).standard_normal((40, D)) * np.arange(1, D + 1)
    return hidden.T @ hidden / 40


def reconstruction(form, E, rank):
    A, B = form.factors(E, rank)
    return A @ B + form.mean


def test_equal_weights_give_the_truncated_svd_of_the_centred_matrix(E):
    wide = E.astype(np.float64)
    U, s, Vt = np.linalg.svd(wide - wide.mean(axis=0), full_matrices=False)
    expected = (U[:, :3] * s[:3]) @ Vt[:3] + wide.mean(axis=0)
    np.testing.assert_allclose(reconstruction(closed_form.solve_closed_form(E), E, 3), expected, atol=1e-10)


def test_row_weights_reach_what_wals_with_row_weights_converges_to(E, weights):
    form = closed_form.solve_closed_form(E, weights)
    X = E - form.mean
    problem = DenseProblem(X, np.repeat(weights[:, None], D, axis=1), np.full(V, 1e-12), np.full(D, 1e-12), False)
    v = np.random.default_rng(3).standard_normal((D, 3))
    for _ in range(500):
        u, _ = half_step(problem, v, np.zeros(D))
        v, _ = half_step(problem.transposed, u, np.zeros(V))
    found = float(weights @ ((X - u @ v.T) ** 2).sum(axis=1))
    ours = float(weights @ ((E - reconstruction(form, E, 3)) ** 2).sum(axis=1))
    assert ours == pytest.approx(found, rel=1e-9)


def test_logits_reach_the_error_of_the_truncated_svd_of_the_logits(E, metric):
    form = closed_form.solve_closed_form(E, metric=metric)
    root = np.linalg.cholesky(metric)
    singular = np.linalg.svd((E - form.mean) @ root, compute_uv=False)
    error = ((E - reconstruction(form, E, 3)) @ root) ** 2
    assert error.sum() == pytest.approx((singular[3:] ** 2).sum(), rel=1e-9)


def test_rows_and_metric_together_beat_each_alone_at_their_own_objective(E, weights, metric):
    def objective(form):
        error = E - reconstruction(form, E, 2)
        return float(weights @ np.einsum("ij,jk,ik->i", error, metric, error))

    both = objective(closed_form.solve_closed_form(E, weights, metric))
    assert both < min(
        objective(closed_form.solve_closed_form(E, weights)), objective(closed_form.solve_closed_form(E, metric=metric))
    )


@pytest.mark.parametrize("case", ["svd", "frequency", "logits", "both"])
def test_the_curve_is_the_error_of_every_rank(E, weights, metric, case):
    form = closed_form.solve_closed_form(
        E, weights if case in ("frequency", "both") else None, metric if case in ("logits", "both") else None
    )
    measured = [((E - reconstruction(form, E, rank)) ** 2).mean() for rank in range(D + 1)]
    np.testing.assert_allclose(form.curve, measured, rtol=1e-7, atol=1e-12)


def test_the_full_rank_is_the_matrix(E, weights, metric):
    np.testing.assert_allclose(reconstruction(closed_form.solve_closed_form(E, weights, metric), E, D), E, atol=1e-9)


def test_hidden_states_in_a_subspace_leave_the_matrix_representable(E):
    metric = np.diag([1.0] * 3 + [0.0] * (D - 3))
    form = closed_form.solve_closed_form(E, metric=metric)
    error = E - reconstruction(form, E, 3)
    assert np.abs(error[:, :3]).max() < 1e-4
    np.testing.assert_allclose(reconstruction(form, E, D), E, atol=1e-6)


def test_a_constant_matrix_has_rank_zero():
    E = np.full((10, 4), 2.0, np.float32)
    form = closed_form.solve_closed_form(E)
    assert form.curve.max() == 0
    assert np.array_equal(reconstruction(form, E, 1), E)
