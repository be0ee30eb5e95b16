"""Newton's method with conjugate gradients, on functions with known minima."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wals_spark.inject.fit.newton import minimise


class Quadratic:
    """theta . H theta / 2 - b . theta over a matrix taken as one vector; `model` is the Hessian that Newton is told."""

    def __init__(self, H: torch.Tensor, b: torch.Tensor, shape: tuple[int, int], model: torch.Tensor | None = None):
        self.H, self.b, self.shape = H, b, shape
        self.model = H if model is None else model

    def evaluate(self, theta):
        flat = theta.flatten()
        return float(flat @ self.H @ flat / 2 - self.b @ flat), (self.H @ flat - self.b).reshape(self.shape)

    def hessian(self):
        return lambda v: (self.model @ v.flatten()).reshape(self.shape)

    def inverse_diagonal(self):
        return (1 / torch.diagonal(self.H)).reshape(self.shape)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 4), columns=st.integers(1, 4), spread=st.floats(0, 3))
def test_a_quadratic_function_is_solved(seed, rows, columns, spread):
    generator = np.random.default_rng(seed)
    n = rows * columns
    A = generator.standard_normal((n, n)) * 10 ** generator.uniform(0, spread / 2, n)
    H = torch.from_numpy(A @ A.T + 0.1 * np.eye(n))
    b = torch.from_numpy(generator.standard_normal(n))
    found = minimise(Quadratic(H, b, (rows, columns)), torch.zeros(rows, columns, dtype=torch.float64),
                     tolerance=1e-9, iterations=200)  # fmt: skip
    best = -float(b @ torch.linalg.solve(H, b)) / 2
    assert found.value <= best + 1e-6 * abs(best)
    assert all(later <= earlier for earlier, later in pairwise(found.values))


def test_a_wrong_hessian_slows_but_does_not_move_the_minimum():
    generator = np.random.default_rng(0)
    A = generator.standard_normal((6, 6))
    H = torch.from_numpy(A @ A.T + np.eye(6))
    b = torch.from_numpy(generator.standard_normal(6))
    function = Quadratic(H, b, (3, 2), model=torch.diag(torch.diagonal(H)))
    found = minimise(function, torch.zeros(3, 2, dtype=torch.float64), tolerance=1e-12, iterations=500)
    np.testing.assert_allclose(found.theta.flatten(), torch.linalg.solve(H, b), atol=1e-4)


def test_a_start_at_the_minimum_stays():
    H, b = torch.eye(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    found = minimise(Quadratic(H, b, (2, 2)), torch.zeros(2, 2, dtype=torch.float64), tolerance=1e-3, iterations=5)
    assert found.converged
    assert found.values == [0.0]


def test_too_few_iterations_are_not_called_converged():
    generator = np.random.default_rng(1)
    A = generator.standard_normal((9, 9)) * 10.0 ** np.arange(9)
    H = torch.from_numpy(A @ A.T + np.eye(9))
    b = torch.from_numpy(generator.standard_normal(9))
    found = minimise(Quadratic(H, b, (3, 3)), torch.zeros(3, 3, dtype=torch.float64), tolerance=1e-12, iterations=1)
    assert not found.converged
    assert found.evaluations == 2


def test_every_iteration_is_reported():
    H, b = torch.diag(torch.arange(1.0, 5.0)).double(), torch.ones(4, dtype=torch.float64)
    seen = []
    found = minimise(
        Quadratic(H, b, (2, 2)),
        torch.zeros(2, 2, dtype=torch.float64),
        tolerance=1e-9,
        iterations=9,
        after_iteration=lambda state: seen.append(state.value),
    )
    assert seen == found.values[1:]


def test_the_decrease_counts_from_the_reference():
    H, b = torch.eye(4, dtype=torch.float64), torch.full((4,), 1e-3, dtype=torch.float64)
    start = torch.zeros(2, 2, dtype=torch.float64)
    found = minimise(Quadratic(H, b, (2, 2)), start, tolerance=1e-3, iterations=9, reference=1000.0)
    assert found.converged
    assert len(found.values) == 2


@pytest.mark.parametrize("iterations", [0, 1])
def test_no_iterations_leave_the_start(iterations):
    H, b = torch.eye(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    found = minimise(
        Quadratic(H, b, (1, 1)), torch.zeros(1, 1, dtype=torch.float64), tolerance=1e-3, iterations=iterations
    )
    assert float(found.theta) == pytest.approx(iterations)
