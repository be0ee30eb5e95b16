from __future__ import annotations

import numpy as np
import pytest
from inject_models import alignment_problem
from oracles.inject import blend_reference

from wals_spark.inject import blend


@pytest.mark.parametrize("half", [0.0, 30.0, 1e6])
def test_blend_is_the_reference(half):
    U, E, counts = alignment_problem()
    P = (U @ np.ones((6, 9))).astype(np.float32)
    exposure = counts[::-1].astype(float)
    share = blend.blend_shares(half, 10.0, exposure, counts, np.array([0, 3]), 0.6)
    expected = blend_reference(E, P, exposure, counts, (half, 10.0), 0.6, {0, 3})
    found = blend.blend_rows(E, P, share)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-5)
    assert np.array_equal(found[[0, 3]], E[[0, 3]])


def test_the_share_is_large_only_for_tokens_new_to_pretraining_and_known_to_the_corpus():
    exposure = np.array([1.0, 1.0, 1e6, 1.0, 0.0])
    counts = np.array([10_000, 1, 10_000, 0, 10_000])
    share = blend.blend_shares(100.0, 20.0, exposure, counts, np.array([], np.int64), 1.0)
    assert share[0] > 0.98
    assert share[1] < 0.05
    assert share[2] < 1e-3
    assert share[3] == 0.0
    assert share[4] > share[0]


def test_variances_are_recovered_where_the_two_frequencies_differ():
    generator = np.random.default_rng(4)
    n, c = 10 ** generator.uniform(0, 4, 20_000), 10 ** generator.uniform(0, 4, 20_000)
    expected = 5 / n + 0.4 + 2 / c
    found = blend.fit_variances(expected * generator.gamma(8, 1 / 8, 20_000), n, c)
    assert found.pretrained == pytest.approx(5, rel=0.1)
    assert found.mapping == pytest.approx(0.4, rel=0.1)
    assert found.factors == pytest.approx(2, rel=0.15)


def test_variances_split_evenly_where_the_frequencies_are_the_same():
    n = 10 ** np.random.default_rng(4).uniform(0, 4, 5000)
    found = blend.fit_variances(6 / n + 0.4, n, n)
    assert found.pretrained == pytest.approx(found.factors, rel=1e-3)
    assert found.pretrained + found.factors == pytest.approx(6, rel=0.05)


def test_the_span_is_the_row_space_and_outside_it_is_the_rest():
    generator = np.random.default_rng(0)
    W = generator.standard_normal((3, 8))
    W[2] = W[0] + W[1]
    Q = blend.span_basis(W)
    assert Q.shape == (8, 2)
    np.testing.assert_allclose(Q.T @ Q, np.eye(2), atol=1e-12)
    E, centre = generator.standard_normal((20, 8)), generator.standard_normal(8)
    left = blend.component_outside_span(E, centre, Q)
    np.testing.assert_allclose(left @ Q, 0, atol=1e-5)
    np.testing.assert_allclose(
        blend.component_outside_span(centre + generator.standard_normal((5, 3)) @ W, centre, Q), 0, atol=1e-5
    )
    np.testing.assert_allclose(left, (E - centre) @ (np.eye(8) - Q @ Q.T), atol=1e-5)
