from __future__ import annotations

import numpy as np
import pytest
from oracles.inject import (
    blend_reference,
    cross_validate_reference,
    ridge_reference,
)

from wals_spark.errors import InputError
from wals_spark.inject import align, blend, csls
from wals_spark.inject.gate import fit_and_gate


def problem(n=600, k=6, d=9, noise=0.3, seed=0):
    generator = np.random.default_rng(seed)
    U = generator.standard_normal((n, k)).astype(np.float32) + 2
    E = (U @ generator.standard_normal((k, d)) + noise * generator.standard_normal((n, d)) - 1).astype(np.float32)
    counts = generator.integers(1, 10_000, n)
    return U, E, counts


def test_ridge_is_the_reference():
    U, E, counts = problem()
    weight = align.anchor_weights(counts, 100)
    found = align.ridge(align.accumulate(U, E, weight), 0.01)
    W, mu_u, mu_e = ridge_reference(U, E, weight, 0.01)
    np.testing.assert_allclose(found.W, W, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(found.predict(U), mu_e + (U - mu_u) @ W, rtol=1e-3, atol=1e-4)


def test_without_noise_the_map_is_exact():
    U, E, counts = problem(noise=0.0)
    found = align.ridge(align.accumulate(U, E, align.anchor_weights(counts, 100)), 1e-12)
    np.testing.assert_allclose(found.predict(U), E, atol=1e-4)


def test_constant_factors_predict_the_mean():
    _, E, counts = problem()
    weight = align.anchor_weights(counts, 100)
    found = align.ridge(align.accumulate(np.ones((len(E), 3), np.float32), E, weight), 1.0)
    expected = (weight @ E) / weight.sum()
    np.testing.assert_allclose(found.predict(np.ones((2, 3), np.float32)), np.stack([expected] * 2), rtol=1e-5)


def test_sums_add_in_any_grouping():
    U, E, counts = problem()
    weight = align.anchor_weights(counts, 100)
    whole = align.accumulate(U, E, weight)
    parts = [align.accumulate(U[s], E[s], weight[s]) for s in (slice(0, 17), slice(17, 400), slice(400, None))]
    added = parts[2] + parts[0] + parts[1]
    np.testing.assert_allclose(added.xx, whole.xx, rtol=1e-12)
    np.testing.assert_allclose(added.xy, whole.xy, rtol=1e-10, atol=1e-9)
    np.testing.assert_allclose((whole - parts[0]).xx, (parts[1] + parts[2]).xx, rtol=1e-9)
    assert added.count == whole.count == 600


def test_cross_validation_from_sums_is_the_reference_row_by_row():
    U, E, counts = problem(n=200)
    weight = align.anchor_weights(counts, 100)
    fold = align.stratified_folds(counts, 4, 3)
    grid = (1e-4, 1e-2, 1.0, 100.0)
    found = align.cross_validate(align.sums_by_fold(U, E, weight, fold, 4), grid)
    error, total = cross_validate_reference(U, E, weight, fold, grid)
    np.testing.assert_allclose(found.error, error, rtol=1e-6)
    assert found.total == pytest.approx(total, rel=1e-9)
    assert found.best == grid[int(np.argmin(error))]


def test_held_out_predictions_do_not_see_their_fold():
    U, E, counts = problem()
    weight = align.anchor_weights(counts, 100)
    fold = align.stratified_folds(counts, 4, 1)
    sums = align.sums_by_fold(U, E, weight, fold, 4)
    predicted = align.held_out_predictions(align.held_out_maps(sums, 0.1), U, fold)
    spoiled = E.copy()
    spoiled[fold == 2] = 100
    others = [*sums[:2], align.sums_by_fold(U, spoiled, weight, fold, 4)[2], sums[3]]
    again = align.held_out_predictions(align.held_out_maps(others, 0.1), U, fold)
    np.testing.assert_allclose(again[fold == 2], predicted[fold == 2], rtol=1e-4, atol=1e-4)
    assert not np.allclose(again[fold == 0], predicted[fold == 0])


def test_sums_over_chosen_pairs_are_sums_of_the_gathered_rows(monkeypatch):
    monkeypatch.setattr(align, "_CHUNK", 64)
    U, E, _ = problem()
    generator = np.random.default_rng(7)
    u_rows, e_rows = generator.permutation(600)[:400], generator.permutation(600)[:400]
    weight, fold = generator.random(400), generator.integers(0, 3, 400)
    found = align.sums_by_fold(U, E, weight, fold, 5, u_rows=u_rows, e_rows=e_rows)
    for number in range(5):
        mine = fold == number
        expected = align.accumulate(U[u_rows][mine], E[e_rows][mine], weight[mine])
        assert found[number].count == expected.count
        np.testing.assert_allclose(found[number].xy, expected.xy, rtol=1e-12, atol=1e-10)
        np.testing.assert_allclose(found[number].xx, expected.xx, rtol=1e-12, atol=1e-10)
        assert found[number].yy == pytest.approx(expected.yy)


def test_folds_are_even_in_every_stratum_of_frequency():
    counts = np.random.default_rng(0).zipf(1.5, 1000)
    fold = align.stratified_folds(counts, 5, 1)
    strata = align.deciles(counts)
    for stratum in np.unique(strata):
        sizes = np.bincount(fold[strata == stratum], minlength=5)
        assert sizes.max() - sizes.min() <= 2


def test_a_permutation_within_strata_keeps_every_token_in_its_stratum():
    strata = align.deciles(np.random.default_rng(0).integers(0, 500, 300))
    permutation = align.permute_within(strata, 1)
    assert np.array_equal(strata[permutation], strata)
    assert sorted(permutation) == list(range(300))
    assert (permutation != np.arange(300)).mean() > 0.8


def test_norm_matching_stretches_at_most_twofold():
    profile = (np.array([0.0, 10.0]), np.array([3.0, 3.0]))
    rows = np.array([[1.0, 0], [2.5, 0], [100.0, 0], [0, 0]], np.float32)
    norms = np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(norms * align.norm_factors(norms, np.full(4, 5.0), profile), [2, 3, 50, 0], rtol=1e-5)


def test_the_gate_opens_for_a_real_relation():
    U, E, counts = problem()
    fit = fit_and_gate(U, E, counts, np.arange(600), folds=5, half=100, seed=1)
    assert fit.gate.passed
    assert fit.gate.r2["factors"] > 0.9
    assert fit.gate.r2["permuted"] < 0.1
    assert fit.gate.low <= fit.gate.gain <= fit.gate.high
    assert sum(row["tokens"] for row in fit.gate.deciles) == 600


@pytest.mark.parametrize("seed", range(5))
def test_the_gate_refuses_unrelated_factors(seed):
    _, E, counts = problem()
    U = np.random.default_rng(seed + 50).standard_normal((600, 6)).astype(np.float32)
    fit = fit_and_gate(U, E, counts, np.arange(600), folds=5, half=100, seed=seed)
    assert not fit.gate.passed
    assert "not above" in fit.gate.reason


def test_the_gate_refuses_factors_that_know_only_frequency():
    generator = np.random.default_rng(0)
    counts = generator.integers(1, 100_000, 800)
    logs = np.log(counts)[:, None]
    U = (logs @ generator.standard_normal((1, 5))).astype(np.float32)
    E = (logs @ generator.standard_normal((1, 7)) + generator.standard_normal((800, 7))).astype(np.float32)
    fit = fit_and_gate(U, E, counts, np.arange(800), folds=5, half=100, seed=1)
    assert fit.gate.r2["factors"] > 0.3
    assert not fit.gate.passed


def test_the_gate_refuses_an_embedding_of_equal_rows():
    U, _, counts = problem()
    fit = fit_and_gate(U, np.ones((600, 4), np.float32), counts, np.arange(600), folds=5, half=100, seed=1)
    assert not fit.gate.passed


def test_too_few_anchors_are_an_input_error():
    U, E, counts = problem()
    with pytest.raises(InputError, match="expected at least 50"):
        fit_and_gate(U, E, counts, np.arange(49), folds=5, half=100, seed=1)


@pytest.mark.parametrize("half", [0.0, 30.0, 1e6])
def test_blend_is_the_reference(half):
    U, E, counts = problem()
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


def test_procrustes_recovers_a_rotation_and_its_scale():
    generator = np.random.default_rng(0)
    Q = np.linalg.qr(generator.standard_normal((9, 9)))[0][:6]
    U = generator.standard_normal((400, 6)).astype(np.float32)
    E = (3 * U @ Q + 2).astype(np.float32)
    found = align.procrustes(align.accumulate(U, E, np.ones(400)))
    np.testing.assert_allclose(found.W, 3 * Q, atol=1e-5)
    np.testing.assert_allclose(found.predict(U), E, atol=1e-4)


def test_procrustes_keeps_cosines_and_ridge_fits_better():
    U, E, counts = problem()
    weight = align.anchor_weights(counts, 100)
    sums = align.accumulate(U, E, weight)
    W = align.procrustes(sums).W
    gram = W @ W.T
    np.testing.assert_allclose(gram, gram[0, 0] * np.eye(6), atol=1e-10)
    fold = align.stratified_folds(counts, 5, 1)
    per_fold = align.sums_by_fold(U, E, weight, fold, 5)
    assert align.cross_validate(per_fold).r2 > align.cross_validate_procrustes(per_fold).r2 > 0


def test_errors_from_sums_are_errors_from_rows():
    U, E, counts = problem()
    weight = align.anchor_weights(counts, 100)
    alignment = align.ridge(align.accumulate(U[:300], E[:300], weight[:300]), 0.1)
    residual = E[300:] - alignment.predict(U[300:])
    expected = float(weight[300:] @ np.einsum("ij,ij->i", residual, residual))
    found = align.held_out_error(alignment, align.accumulate(U[300:], E[300:], weight[300:]))
    assert found == pytest.approx(expected, rel=1e-4)


def test_whitened_factors_have_unit_covariance():
    U, E, counts = problem()
    weight = align.anchor_weights(counts, 100)
    sums = align.accumulate(U, E, weight)
    T = align.whitening(sums)
    np.testing.assert_allclose(align.transformed(sums, T).centred().xx / sums.weight, np.eye(6), atol=1e-6)
    direct = align.accumulate(U.astype(np.float64) @ T, E, weight)
    np.testing.assert_allclose(align.transformed(sums, T).xy, direct.xy, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", ["ridge", "procrustes"])
def test_a_whitened_map_applies_to_the_factors_as_they_are(method):
    U, E, counts = problem(noise=0.01)
    anchors = np.arange(600)
    fit = fit_and_gate(U, E, counts, anchors, folds=5, half=100, seed=1, method=method, whiten=True)
    square = ((E - fit.alignment.predict(U)) ** 2).sum(axis=1)
    assert fit.held_out_error.sum() == pytest.approx(square.sum(), rel=0.05)
    assert fit.gate.passed


def test_csls_finds_the_own_row_and_not_under_permutation():
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((500, 20)).astype(np.float32)
    noisy = rows + 0.3 * generator.standard_normal((500, 20)).astype(np.float32)
    queries = csls.stratified_queries(np.arange(500) // 50, 1, 200)
    assert len(queries) == 200
    nothing = np.zeros((1, 20), np.float32), np.zeros(500, int)
    assert csls.csls_hits(noisy[queries], rows, queries, *nothing).mean() > 0.95
    assert csls.csls_hits(noisy[::-1][queries], rows, queries, *nothing).mean() < 0.05


def test_csls_is_its_definition():
    generator = np.random.default_rng(3)
    x, y = generator.standard_normal((2, 30, 4)).astype(np.float32)
    queries = np.arange(30)
    unit = [m / np.linalg.norm(m, axis=1, keepdims=True) for m in (x, y)]
    expected = []
    for i in range(30):
        cosines = [float(unit[0][i] @ unit[1][j]) for j in range(30)]
        hub = [np.mean(sorted(float(unit[0][m] @ unit[1][j]) for m in range(30))[-10:]) for j in range(30)]
        own = np.mean(sorted(cosines)[-10:])
        expected.append(int(np.argmax([2 * c - own - h for c, h in zip(cosines, hub, strict=True)])) == i)
    assert csls.csls_hits(x, y, queries, np.zeros((1, 4), np.float32), np.zeros(30, int)).tolist() == expected


def test_the_span_holds_what_the_map_can_reach_and_outside_the_rest():
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
