"""Products, factorisation and solution in panels against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

TOLERANCE = {"float32": 1e-4, "float64": 1e-12}
WIDTHS = [1, 7, 12, 16, 37, 100, 116]


def from_panels(panels: np.ndarray, rows: int, width: int) -> np.ndarray:
    return np.hstack([panel[:rows] for panel in panels])[:, :width]


def spd(width: int, dtype: str) -> np.ndarray:
    z = np.random.default_rng(1).standard_normal((width + 3, width))
    return (z.T @ z + np.eye(width)).astype(dtype)


def factorised(a: np.ndarray) -> tuple[bool, np.ndarray, np.ndarray]:
    from wals_spark.wals.solvers.kernels.cholesky import factorise
    from wals_spark.wals.solvers.kernels.packed_panels import empty_panels, lanes_of, to_panels

    width, lanes = len(a), lanes_of(a)
    factor = empty_panels(width, width, a)
    inverses = np.zeros((len(factor), lanes, lanes), a.dtype)
    found = factorise(to_panels(a), width, factor, inverses, empty_panels(1, lanes, a))
    return found, factor, inverses


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("count", [0, 1, 37])
def test_the_upper_triangle_is_the_product(dtype: str, width: int, count: int) -> None:
    from wals_spark.wals.solvers.kernels.packed_panels import rank_update, to_panels

    rng = np.random.default_rng(0)
    gathered = rng.standard_normal((60, width)).astype(dtype)
    target = rng.standard_normal((width, width)).astype(dtype)
    z = gathered[4 : 4 + count].astype(np.float64)
    updated = to_panels(target)
    rank_update(to_panels(gathered), width, 4, count, updated, np.dtype(dtype).type(-1))
    assert np.abs(np.triu(from_panels(updated, width, width) - (target - z.T @ z))).max() < TOLERANCE[dtype]


@pytest.mark.parametrize("width", WIDTHS)
def test_products_stay_within_the_memory_of_the_panels(width: int) -> None:
    from wals_spark.wals.solvers.kernels.packed_panels import empty_panels, rank_update, to_panels

    gathered = to_panels(np.ones((3, width), np.float32))
    shape = empty_panels(width, width, np.zeros(1, np.float32)).shape
    guarded = np.full((shape[0] + 2, *shape[1:]), 7.0, np.float32)
    rank_update(gathered, width, 0, 3, guarded[1:-1], np.float32(1))
    assert (guarded[[0, -1]] == 7).all()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_system_is_factorised_and_solved(dtype: str, width: int) -> None:
    from wals_spark.wals.solvers.kernels.cholesky import solve_factored

    a = spd(width, dtype)
    found, factor, inverses = factorised(a)
    assert found
    r = np.triu(from_panels(factor, width, width)).astype(np.float64)
    assert np.abs(r.T @ r - a).max() < TOLERANCE[dtype] * np.abs(a).max()
    b = np.full((len(factor)) * factor.shape[2], np.nan, dtype)
    b[:width] = np.arange(1, width + 1)
    solve_factored(factor, width, inverses, b)
    assert np.allclose(a.astype(np.float64) @ b[:width], np.arange(1, width + 1), atol=1e3 * TOLERANCE[dtype])
    assert not b[width:].any()


@pytest.mark.parametrize("at", [0, 5, 20])
@pytest.mark.parametrize("value", [0.0, -1.0, np.nan])
def test_a_matrix_that_is_not_positive_definite_is_reported(at: int, value: float) -> None:
    a = np.eye(21)
    a[at, at] = value
    assert not factorised(a)[0]


def test_the_parts_of_a_triangle_are_scaled() -> None:
    from wals_spark.wals.solvers.kernels.packed_panels import empty_panels, scale_triangle, to_panels

    a = spd(19, "float64")
    target = empty_panels(19, 19, a)
    scale_triangle(to_panels(a), 19, 0.5, target)
    assert np.array_equal(np.triu(from_panels(target, 19, 19)), np.triu(0.5 * a))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_product_with_the_upper_triangle_is_that_with_the_matrix(dtype: str, width: int) -> None:
    from wals_spark.wals.solvers.kernels.packed_panels import lanes_of, subtract_product, to_panels

    a = spd(width, dtype)
    panels = to_panels(a)
    lanes = lanes_of(a)
    for q, panel in enumerate(panels):
        panel[(q + 1) * lanes :] = np.nan  # below the blocks on the diagonal
    size = -(-width // lanes) * lanes
    x, residual = np.zeros(size), np.ones(size)
    x[:width] = np.arange(1, width + 1)
    subtract_product(panels, width, x, residual)
    assert np.allclose(residual[:width], 1 - a.astype(np.float64) @ x[:width], rtol=1e-13, atol=1e-9)
