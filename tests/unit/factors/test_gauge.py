"""The canonical gauge."""

from __future__ import annotations

import numpy as np
import pytest

from wals_spark.factors.gauge import canonical, column_extremes, stack_factors, triangular_factor


def pair(seed: int = 0, m: int = 60, n: int = 45, k: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((m, k)), rng.standard_normal((n, k))


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_product_stays_and_the_spectrum_is_right(power: float) -> None:
    u, v = pair()
    u2, v2, singular = canonical(u, v, power)
    assert np.allclose(u2 @ v2.T, u @ v.T, atol=1e-12)
    assert np.allclose(singular, np.linalg.svd(u @ v.T, compute_uv=False)[:6], rtol=1e-12)
    assert np.allclose(u2.T @ u2, np.diag(singular ** (2 * power)), atol=1e-9)
    assert np.allclose(v2.T @ v2, np.diag(singular ** (2 - 2 * power)), atol=1e-9)


def test_the_basis_of_the_input_does_not_matter() -> None:
    u, v = pair()
    a = np.random.default_rng(9).standard_normal((6, 6))
    first = canonical(u, v)
    second = canonical(u @ a, v @ np.linalg.inv(a).T)
    assert np.allclose(first[0], second[0], atol=1e-8)
    assert np.allclose(first[1], second[1], atol=1e-8)


def test_the_largest_entry_of_a_column_is_positive() -> None:
    u, _, _ = canonical(*pair(4))
    assert (np.take_along_axis(u, np.abs(u).argmax(0)[None], 0) > 0).all()


def test_rank_deficient_factors_keep_their_product() -> None:
    u, v = pair()
    u[:, 3] = u[:, 0] + u[:, 1]
    v[:, 5] = 0
    u2, v2, singular = canonical(u, v)
    assert np.isfinite(u2).all()
    assert np.allclose(u2 @ v2.T, u @ v.T, atol=1e-10)
    assert (singular > 1e-9).sum() == np.linalg.matrix_rank(u @ v.T) == 4


def test_zero_factors_stay_zero() -> None:
    u2, v2, singular = canonical(np.zeros((5, 3)), np.zeros((4, 3)))
    assert not u2.any()
    assert not v2.any()
    assert not singular.any()


def test_r_of_chunks_is_r_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wals_spark.factors.gauge.CHUNK_ROWS", 7)
    u, _ = pair()
    r = triangular_factor(u)
    assert np.allclose(r.T @ r, u.T @ u, rtol=1e-12)


def test_r_of_the_r_of_parts_is_r_of_the_whole() -> None:
    u, _ = pair()
    r = stack_factors([triangular_factor(u[:20]), triangular_factor(u[20:])], u.shape[1])
    assert np.allclose(r.T @ r, u.T @ u, rtol=1e-12)


def test_extremes_are_entries_with_their_sign() -> None:
    assert column_extremes(np.array([[1.0, -2.0], [-3.0, 1.0]])).tolist() == [-3.0, -2.0]
    assert column_extremes(np.zeros((0, 2))).tolist() == [0.0, 0.0]
