from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array

from wals_spark.evaluate.controls import permuted_vectors, ppmi, random_vectors, truncated_svd


@pytest.fixture
def matrix():
    return np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)


def test_permuted_rows_are_the_same_rows_elsewhere_and_unseen_ones_stay(matrix):
    counts = np.arange(50) % 5
    shuffled = permuted_vectors(matrix, counts, 1)
    assert np.array_equal(shuffled[counts == 0], matrix[counts == 0])
    assert not np.array_equal(shuffled, matrix)
    assert np.array_equal(np.sort(shuffled, axis=0), np.sort(matrix, axis=0))
    assert np.array_equal(shuffled, permuted_vectors(matrix, counts, 1))


def test_random_vectors_keep_the_norms(matrix):
    drawn = random_vectors(matrix, 1)
    assert np.allclose(np.linalg.norm(drawn, axis=1), np.linalg.norm(matrix, axis=1), rtol=1e-5)
    assert abs(np.corrcoef(drawn.ravel(), matrix.ravel())[0, 1]) < 0.2


def test_ppmi_is_its_definition_and_adds_equal_cells():
    generator = np.random.default_rng(0)
    rows, cols = generator.integers(12, size=(2, 200))
    values = generator.integers(1, 9, size=200)
    dense = np.zeros((12, 12))
    np.add.at(dense, (rows, cols), values)
    with np.errstate(divide="ignore"):
        expected = np.maximum(np.log(dense * dense.sum() / np.outer(dense.sum(1), dense.sum(0))), 0)
    assert np.allclose(ppmi(rows, cols, values, 12).toarray(), expected, atol=1e-6)


def test_the_svd_is_numpys_up_to_rotation():
    generator = np.random.default_rng(0)
    spectrum = 10 * 0.8 ** np.arange(60)
    left, right = (np.linalg.qr(generator.normal(size=(size, 60)))[0] for size in (90, 80))
    whole = ((left * spectrum) @ right.T).astype(np.float32)
    found = truncated_svd(csr_array(whole), 8, 1)
    u, s, _ = np.linalg.svd(whole, full_matrices=False)
    expected = u[:, :8] * np.sqrt(s[:8])
    assert found.shape == (90, 8)
    assert np.allclose(found @ found.T, expected @ expected.T, atol=1e-3)
