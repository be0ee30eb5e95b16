from __future__ import annotations

import numpy as np
import pytest
from inject_models import alignment_problem
from oracles.inject import cross_validate_reference, ridge_reference

from wals_spark.inject import align


def test_ridge_is_the_reference():
    U, E, counts = alignment_problem()
    weight = align.anchor_weights(counts, 100)
    found = align.ridge(align.accumulate(U, E, weight), 0.01)
    W, mu_u, mu_e = ridge_reference(U, E, weight, 0.01)
    np.testing.assert_allclose(found.W, W, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(found.predict(U), mu_e + (U - mu_u) @ W, rtol=1e-3, atol=1e-4)


def test_without_noise_the_map_is_exact():
    U, E, counts = alignment_problem(noise=0.0)
    found = align.ridge(align.accumulate(U, E, align.anchor_weights(counts, 100)), 1e-12)
    np.testing.assert_allclose(found.predict(U), E, atol=1e-4)


def test_constant_factors_predict_the_mean():
    _, E, counts = alignment_problem()
    weight = align.anchor_weights(counts, 100)
    found = align.ridge(align.accumulate(np.ones((len(E), 3), np.float32), E, weight), 1.0)
    expected = (weight @ E) / weight.sum()
    np.testing.assert_allclose(found.predict(np.ones((2, 3), np.float32)), np.stack([expected] * 2), rtol=1e-5)


def test_sums_add_in_any_grouping():
    U, E, counts = alignment_problem()
    weight = align.anchor_weights(counts, 100)
    whole = align.accumulate(U, E, weight)
    parts = [align.accumulate(U[s], E[s], weight[s]) for s in (slice(0, 17), slice(17, 400), slice(400, None))]
    added = parts[2] + parts[0] + parts[1]
    np.testing.assert_allclose(added.xx, whole.xx, rtol=1e-12)
    np.testing.assert_allclose(added.xy, whole.xy, rtol=1e-10, atol=1e-9)
    np.testing.assert_allclose((whole - parts[0]).xx, (parts[1] + parts[2]).xx, rtol=1e-9)
    assert added.count == whole.count == 600


def test_cross_validation_from_sums_is_the_reference_row_by_row():
    U, E, counts = alignment_problem(n=200)
    weight = align.anchor_weights(counts, 100)
    fold = align.stratified_folds(counts, 4, 3)
    grid = (1e-4, 1e-2, 1.0, 100.0)
    found = align.cross_validate(align.sums_by_fold(U, E, weight, fold, 4), grid)
    error, total = cross_validate_reference(U, E, weight, fold, grid)
    np.testing.assert_allclose(found.error, error, rtol=1e-6)
    assert found.total == pytest.approx(total, rel=1e-9)
    assert found.best == grid[int(np.argmin(error))]


def test_held_out_predictions_do_not_see_their_fold():
    U, E, counts = alignment_problem()
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
    U, E, _ = alignment_problem()
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


def test_procrustes_recovers_a_rotation_and_its_scale():
    generator = np.random.default_rng(0)
    Q = np.linalg.qr(generator.standard_normal((9, 9)))[0][:6]
    U = generator.standard_normal((400, 6)).astype(np.float32)
    E = (3 * U @ Q + 2).astype(np.float32)
    found = align.procrustes(align.accumulate(U, E, np.ones(400)))
    np.testing.assert_allclose(found.W, 3 * Q, atol=1e-5)
    np.testing.assert_allclose(found.predict(U), E, atol=1e-4)


def test_procrustes_keeps_cosines_and_ridge_fits_better():
    U, E, counts = alignment_problem()
    weight = align.anchor_weights(counts, 100)
    sums = align.accumulate(U, E, weight)
    W = align.procrustes(sums).W
    gram = W @ W.T
    np.testing.assert_allclose(gram, gram[0, 0] * np.eye(6), atol=1e-10)
    fold = align.stratified_folds(counts, 5, 1)
    per_fold = align.sums_by_fold(U, E, weight, fold, 5)
    assert align.cross_validate(per_fold).r2 > align.cross_validate_procrustes(per_fold).r2 > 0


def test_errors_from_sums_are_errors_from_rows():
    U, E, counts = alignment_problem()
    weight = align.anchor_weights(counts, 100)
    alignment = align.ridge(align.accumulate(U[:300], E[:300], weight[:300]), 0.1)
    residual = E[300:] - alignment.predict(U[300:])
    expected = float(weight[300:] @ np.einsum("ij,ij->i", residual, residual))
    found = align.held_out_error(alignment, align.accumulate(U[300:], E[300:], weight[300:]))
    assert found == pytest.approx(expected, rel=1e-4)


def test_whitened_factors_have_unit_covariance():
    U, E, counts = alignment_problem()
    weight = align.anchor_weights(counts, 100)
    sums = align.accumulate(U, E, weight)
    T = align.whitening(sums)
    np.testing.assert_allclose(align.transformed(sums, T).centred().xx / sums.weight, np.eye(6), atol=1e-6)
    direct = align.accumulate(U.astype(np.float64) @ T, E, weight)
    np.testing.assert_allclose(align.transformed(sums, T).xy, direct.xy, rtol=1e-6, atol=1e-6)
