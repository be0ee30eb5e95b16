"""Non-negative least squares beside scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import nnls

from wals_spark.wals.solvers.kernels.nonnegative import nonnegative_solution


@pytest.mark.parametrize("seed", range(30))
def test_random_systems_are_solved_as_scipy_solves_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    k = int(rng.integers(1, 40))
    z = rng.standard_normal((k + int(rng.integers(0, 20)), k)) + rng.choice([0.0, 1.0])
    z *= 10.0 ** rng.uniform(-2, 2, k)
    y = rng.standard_normal(len(z))
    ridge = 10.0 ** rng.uniform(-6, 1) * np.eye(k)
    a, b = z.T @ z + ridge, z.T @ y
    x, solved = nonnegative_solution(a, b)
    stacked = np.vstack([z, np.sqrt(ridge)])
    expected, _ = nnls(stacked, np.append(y, np.zeros(k)))
    assert solved
    w = b - a @ x
    assert (x >= 0).all()
    assert w.max() <= 1e-6 * np.abs(b).max()
    assert np.abs(x * w).max() <= 1e-6 * np.abs(b).max() * max(1.0, x.max())
    value, least = (v @ a @ v - 2 * b @ v for v in (x, expected))
    assert value <= least + 1e-9 * abs(least)


def test_all_coordinates_may_be_zero() -> None:
    x, solved = nonnegative_solution(np.eye(3), -np.ones(3))
    assert solved
    assert not x.any()


def test_a_coordinate_without_curvature_is_not_solved() -> None:
    assert not nonnegative_solution(np.diag([1.0, 0.0]), np.ones(2))[1]
