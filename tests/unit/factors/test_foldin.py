"""New rows for given column factors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from oracles import wals as oracle

from wals_spark.errors import InputError
from wals_spark.factors.foldin import fold_in
from wals_spark.matrix.csr import Csr, build_csr
from wals_spark.objective import PRESETS


def rows_of(counts: np.ndarray) -> Csr:
    row, col = np.nonzero(counts)
    return build_csr(row.astype(np.int32), col.astype(np.int32), counts[row, col].astype(np.int64), len(counts))


@pytest.fixture
def counts() -> np.ndarray:
    counts = np.random.default_rng(0).poisson(0.5, (40, 30))
    counts[4] = 0
    return counts


OBJECTIVES = {name: objective for name, objective in PRESETS.items() if objective.is_quadratic and name != "custom"}
OBJECTIVES["fixed"] = replace(PRESETS["glove"], bias="fixed", rho=0.2)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_folding_in_the_rows_of_the_training_is_its_half_step(counts: np.ndarray, name: str) -> None:
    objective = OBJECTIVES[name]
    v, c = np.random.default_rng(1).standard_normal((30, 5)), np.random.default_rng(2).standard_normal(30)
    c = c if objective.bias == "free" else np.zeros(30)
    marginals = oracle.marginals_of(counts, objective)
    u, b = fold_in(rows_of(counts), v, objective, marginals, c=c)
    expected_u, expected_b = oracle.half_step(oracle.dense_problem(objective, counts), v, c)
    assert np.allclose(u, expected_u, atol=1e-9)
    if objective.bias != "fixed":
        assert np.allclose(b, expected_b, atol=1e-9)
    assert not u[4].any()


@pytest.mark.parametrize("name", ["swivel", "squared_norm", "custom"])
def test_objectives_without_a_half_step_of_their_own_are_refused(counts: np.ndarray, name: str) -> None:
    marginals = oracle.marginals_of(counts, PRESETS[name])
    with pytest.raises(InputError, match=f"fold-in with the objective {name} is not available"):
        fold_in(rows_of(counts), np.ones((30, 3)), PRESETS[name], marginals)


def test_one_new_row_is_solved_as_if_it_had_been_there(counts: np.ndarray) -> None:
    objective = PRESETS["ppmi"]
    v = np.random.default_rng(1).standard_normal((30, 5))
    marginals = oracle.marginals_of(counts, objective)
    whole, _ = fold_in(rows_of(counts), v, objective, marginals)
    alone, _ = fold_in(rows_of(counts[7:8]), v, objective, marginals)
    assert np.allclose(alone[0], whole[7], atol=1e-12)


def test_units_are_divided_out(counts: np.ndarray) -> None:
    objective = PRESETS["ppmi"]
    v = np.random.default_rng(1).standard_normal((30, 5))
    marginals = oracle.marginals_of(counts, objective)
    first, _ = fold_in(rows_of(counts), v, objective, marginals)
    second, _ = fold_in(rows_of(counts * 2520), v, objective, marginals, unit=2520)
    assert np.allclose(first, second, atol=1e-12)


def test_a_column_outside_the_training_is_refused(counts: np.ndarray) -> None:
    objective = PRESETS["ppmi"]
    marginals = oracle.marginals_of(counts[:, :20], objective)
    with pytest.raises(InputError, match=r"column 29, expected 0 .. 19"):
        fold_in(rows_of(counts), np.ones((20, 2)), objective, marginals)


def test_marginals_of_another_training_are_refused(counts: np.ndarray) -> None:
    objective = PRESETS["ppmi"]
    with pytest.raises(InputError, match="20 column factors, but marginals of 30 columns"):
        fold_in(rows_of(counts), np.ones((20, 2)), objective, oracle.marginals_of(counts, objective))


def test_a_row_without_a_solution_is_named(counts: np.ndarray) -> None:
    objective = replace(PRESETS["explicit"], regularization=0.0)
    v, marginals = np.ones((30, 3)), oracle.marginals_of(counts, objective)
    with pytest.raises(InputError, match="row 0 has no unique solution"):
        fold_in(rows_of(counts), v, objective, marginals)
    with pytest.raises(InputError, match="row 1000 has no unique solution"):
        fold_in(rows_of(counts), v, objective, marginals, ids=np.arange(1000, 1040))
