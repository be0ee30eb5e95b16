from __future__ import annotations

import math

import numpy as np
import pytest

from wals_spark.errors import InputError
from wals_spark.mlm.statistics import Clusters, Interval, two_level_bootstrap


def test_the_mean_is_over_observations_and_the_macro_mean_over_clusters():
    clusters = Clusters(np.array([4, 4, 4, 9]), 200, 1)
    values = np.array([1.0, 1.0, 1.0, 5.0])
    assert clusters.mean(values).value == 2.0
    assert clusters.macro(values).value == 3.0
    assert (clusters.mean(values).n, clusters.mean(values).clusters) == (4, 2)


def test_the_interval_has_the_width_that_normal_theory_gives():
    generator = np.random.default_rng(0)
    values = generator.normal(3.0, 2.0, 4000)
    interval = Clusters(np.arange(4000), 4000, 1).mean(values)
    half = 1.96 * values.std() / math.sqrt(4000)
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_clusters_widen_the_interval_of_correlated_observations():
    generator = np.random.default_rng(0)
    effect = np.repeat(generator.normal(size=40), 50)
    values = effect + 0.1 * generator.normal(size=2000)
    alone = Clusters(np.arange(2000), 2000, 1).mean(values)
    clustered = Clusters(np.repeat(np.arange(40), 50), 2000, 1).mean(values)
    assert (clustered.high - clustered.low) > 4 * (alone.high - alone.low)


def test_a_paired_difference_is_narrower_than_the_arms():
    generator = np.random.default_rng(0)
    before = generator.normal(size=500)
    after = before - 0.1 + 0.01 * generator.normal(size=500)
    clusters = Clusters(np.arange(500), 1000, 1)
    difference = clusters.difference(after, before)
    assert difference.value == pytest.approx(-0.1, abs=0.005)
    assert difference.high - difference.low < 0.05 * (clusters.mean(before).high - clusters.mean(before).low)
    assert difference.excludes_zero


def test_no_difference_is_not_clear():
    values = np.random.default_rng(1).normal(size=100)
    assert not Clusters(np.arange(100), 500, 1).difference(values, values).excludes_zero


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(1).normal(size=300)
    labels = np.arange(300) // 3
    assert Clusters(labels, 500, 5).mean(values) == Clusters(labels, 500, 5).mean(values)


def test_one_cluster_has_no_interval_and_none_has_no_value():
    one = Clusters(np.zeros(5, int), 100, 1).mean(np.arange(5.0))
    assert one.value == 2.0
    assert math.isnan(one.low)
    assert not one.excludes_zero
    assert math.isnan(Clusters(np.empty(0, int), 100, 1).mean(np.empty(0)).value)


def test_arms_of_different_length_cannot_be_paired():
    with pytest.raises(InputError, match="cannot be paired"):
        Clusters(np.arange(5), 100, 1).mean(np.arange(4.0))


def test_an_interval_off_zero_is_clear_on_either_side():
    assert Interval(1, 0.5, 2, 9, 9).excludes_zero
    assert Interval(-1, -2, -0.5, 9, 9).excludes_zero
    assert not Interval(0.1, -0.5, 2, 9, 9).excludes_zero


def test_two_level_intervals_widen_when_seeds_disagree():
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(50), 4)
    before = generator.standard_normal((3, 200))
    agree = before + 0.5
    disagree = before + np.array([[0.2], [0.5], [0.8]])
    narrow, wide = (two_level_bootstrap(after, before, labels, 500, 1) for after in (agree, disagree))
    assert narrow.value == pytest.approx(0.5)
    assert (narrow.low, narrow.high) == (pytest.approx(0.5), pytest.approx(0.5))
    assert wide.value == pytest.approx(0.5)
    assert wide.low == pytest.approx(0.2, abs=0.1)
    assert wide.high == pytest.approx(0.8, abs=0.1)
    assert (wide.n, wide.clusters) == (200, 50)


def test_two_level_with_one_seed_is_the_interval_over_clusters():
    generator = np.random.default_rng(1)
    labels = np.arange(300)
    after = generator.standard_normal((1, 300))
    found = two_level_bootstrap(after, np.zeros((1, 300)), labels, 2000, 1)
    plain = Clusters(labels, 2000, 1).mean(after[0])
    assert found.value == pytest.approx(plain.value)
    assert found.high - found.low == pytest.approx(plain.high - plain.low, rel=0.1)


def test_two_level_says_what_shape_it_expects():
    with pytest.raises(InputError, match=r"\(seeds, n\)"):
        two_level_bootstrap(np.zeros(5), np.zeros(5), np.zeros(5, int), 10, 1)


def test_an_interval_comes_back_from_json():
    interval = Interval(0.5, 0.25, 0.75, 10, 3)
    assert Interval.from_json(interval.to_json()) == interval
    assert interval.to_json() == {"value": 0.5, "low": 0.25, "high": 0.75, "targets": 10, "documents": 3}
