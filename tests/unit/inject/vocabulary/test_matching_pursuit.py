"""Orthogonal matching pursuit against least squares solved anew at every step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.transfer import matching_pursuit_reference

from wals_spark.inject.vocabulary.matching_pursuit import SparseCombinations, matching_pursuit


def left(target, atoms, found, index):
    return target - found.coefficients[index] @ atoms[found.atoms[index]]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 4), st.integers(1, 12), st.integers(1, 8), st.integers(1, 12), st.integers(0, 10_000))
def test_the_residual_is_that_of_the_reference(n, m, k, steps, seed):
    generator = np.random.default_rng(seed)
    atoms = generator.standard_normal((m, k)) * generator.integers(0, 3, (m, 1))  # some of length 0
    atoms[m // 2] = 2 * atoms[0]  # and some parallel
    targets = generator.standard_normal((n, k))
    found = matching_pursuit(targets, atoms, steps)
    for index, target in enumerate(targets):
        chosen, x = matching_pursuit_reference(target, atoms, steps)
        expected = target - x @ atoms[chosen]
        np.testing.assert_allclose(left(target, atoms, found, index), expected, atol=1e-6)


def test_a_combination_of_few_atoms_is_found_exactly():
    generator = np.random.default_rng(0)
    atoms = np.linalg.qr(generator.standard_normal((20, 20)))[0][:12]
    target = 3 * atoms[7] - 2 * atoms[2]
    found = matching_pursuit(target[None], atoms, 5)
    assert found.atoms[0, :2].tolist() == [7, 2]
    np.testing.assert_allclose(found.coefficients[0], [3, -2, 0, 0, 0], atol=1e-6)


def test_atoms_that_repeat_are_taken_once():
    atoms = np.eye(3)[[0, 0, 1]]
    found = matching_pursuit(np.array([[1.0, 0.5, 0.0]]), atoms, 3)
    assert found.atoms[0, :2].tolist() == [0, 2]
    np.testing.assert_allclose(found.coefficients[0, :2], [1, 0.5])


@pytest.mark.parametrize(("targets", "atoms"), [(np.zeros((1, 3)), np.eye(3)), (np.ones((1, 3)), np.zeros((2, 3)))])
def test_nothing_to_explain_or_to_explain_with_is_a_combination_of_nothing(targets, atoms):
    assert not matching_pursuit(targets, atoms, 2).coefficients.any()


def test_combinations_of_other_rows_keep_the_coefficients():
    combinations = SparseCombinations(np.array([[1, 0], [2, 0]]), np.array([[2.0, -1.0], [1.0, 0.0]]))
    rows = combinations.of_rows(np.array([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]]))
    assert rows.dtype == np.float32
    assert rows.tolist() == [[-1.0, 2.0], [5.0, 5.0]]


def test_more_targets_than_a_chunk():
    generator = np.random.default_rng(1)
    atoms, targets = generator.standard_normal((9, 4)), generator.standard_normal((600, 4))
    found = matching_pursuit(targets, atoms, 4)
    np.testing.assert_allclose(found.of_rows(atoms), targets, atol=1e-4)
