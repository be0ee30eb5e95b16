from __future__ import annotations

import numpy as np
import pytest

from wals_spark.compress import quantise


@pytest.fixture
def E():
    return np.random.default_rng(0).standard_normal((300, 6)).astype(np.float32)


def test_int8_is_within_half_a_step_of_every_row(E):
    found = quantise.quantise_integers(E, 8)
    step = np.abs(E).max(axis=1, keepdims=True) / 127
    assert (np.abs(found.values - E) <= step / 2 * 1.0001).all()
    assert found.bytes == 300 * 6 + 4 * 300


def test_fewer_bits_take_fewer_bytes_and_err_more(E):
    coarse, fine = quantise.quantise_integers(E, 3), quantise.quantise_integers(E, 8)
    assert coarse.bytes == 300 * 6 * 3 // 8 + 1200
    assert ((coarse.values - E) ** 2).mean() > 100 * ((fine.values - E) ** 2).mean()


def test_a_row_of_zeros_stays_one():
    assert not quantise.quantise_integers(np.zeros((2, 3), np.float32), 8).values.any()


def test_the_nearest_centroid_is_that_of_a_plain_search(E):
    centroids = E[:40].copy()
    plain = ((E[:, None] - centroids) ** 2).sum(axis=2).argmin(axis=1)
    assert np.array_equal(quantise.nearest_centroids(E, centroids), plain)


def test_as_many_centroids_as_distinct_rows_lose_nothing():
    E = np.repeat(np.random.default_rng(1).standard_normal((30, 4)).astype(np.float32), 3, axis=0)[:90]
    found = quantise.product_quantise(E, 2)
    assert np.abs(found.values - E).max() < 1e-6


def test_more_groups_err_less(E):
    errors = [((quantise.product_quantise(E, groups).values - E) ** 2).mean() for groups in (1, 2, 6)]
    assert errors[0] > errors[1] > errors[2]


def test_codes_and_centroids_are_counted(E):
    assert quantise.product_quantise(E, 3).bytes == 300 * 3 + 4 * 256 * 6


@pytest.mark.parametrize("budget", [100, 1_500, 7_500, 8_500, 20_000])
def test_controls_stay_within_the_budget(E, budget):
    found = list(quantise.controls(E, budget))
    assert all(control.bytes <= budget for control in found)
    assert bool(found) == (budget >= 7_500 or budget == 1_500 + 500)


def test_the_largest_budget_buys_float16_too(E):
    assert [control.name for control in quantise.controls(E, 10**6)] == ["PQ 6 x 8 bit", "INT8", "float16"]
