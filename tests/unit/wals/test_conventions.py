"""Losses of other libraries, written from their formulas, against the objectives that are said to equal them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from oracles import wals as oracle

from wals_spark.objective import Objective
from wals_spark.wals import conventions

K = 4


@pytest.fixture
def ratings() -> np.ndarray:
    rng = np.random.default_rng(3)
    return (rng.integers(1, 6, (14, 9)) * (rng.random((14, 9)) < 0.5)).astype(float)


def mllib(x: np.ndarray, u: np.ndarray, v: np.ndarray, alpha: float | None) -> float:
    s, seen = u @ v.T, x > 0
    ridge = 0.07 * (seen.sum(1) @ (u * u).sum(1) + seen.sum(0) @ (v * v).sum(1))
    if alpha is None:
        return float(((x - s) ** 2)[seen].sum() + ridge)
    return float(((1 + alpha * np.abs(x)) * (seen - s) ** 2).sum() + ridge)


def implicit(x: np.ndarray, u: np.ndarray, v: np.ndarray) -> float:
    confidence = np.where(x > 0, 2.5 * x, 1.0)
    return float((confidence * ((x > 0) - u @ v.T) ** 2).sum() + 0.3 * ((u * u).sum() + (v * v).sum()))


def ials(x: np.ndarray, u: np.ndarray, v: np.ndarray) -> float:
    s, seen = u @ v.T, x > 0
    rows = (seen.sum(1) + 0.2 * x.shape[1]) ** 0.8
    cols = (seen.sum(0) + 0.2 * x.shape[0]) ** 0.8
    ridge = 0.01 * (rows @ (u * u).sum(1) + cols @ (v * v).sum(1))
    return float(((s - 1) ** 2)[seen].sum() + 0.2 * (s * s).sum() + ridge)


CASES: dict[str, tuple[Objective, Callable[..., float]]] = {
    "MLlib explicit": (conventions.from_mllib(0.07), lambda x, u, v: mllib(x, u, v, None)),
    "MLlib implicit": (conventions.from_mllib(0.07, 1.5), lambda x, u, v: mllib(x, u, v, 1.5)),
    "implicit": (conventions.from_implicit(0.3, 2.5), implicit),
    "iALS": (conventions.from_ials(0.2, 0.01, 0.8), ials),
}


@pytest.mark.parametrize("name", CASES)
def test_losses_differ_by_a_constant_only(ratings: np.ndarray, name: str) -> None:
    objective, theirs = CASES[name]
    problem = oracle.dense_problem(objective, ratings)
    rng = np.random.default_rng(0)
    zero = np.zeros(14), np.zeros(9)
    differences = []
    for scale in (0.1, 0.5, 1.0, 2.0):
        u, v = scale * rng.standard_normal((14, K)), scale * rng.standard_normal((9, K))
        differences.append(oracle.loss(problem, u, v, *zero) - theirs(ratings, u, v))
    assert differences == pytest.approx([differences[0]] * 4, abs=1e-9)


def test_tensorflow_weights_come_from_a_column(ratings: np.ndarray) -> None:
    objective = conventions.from_tensorflow(0.2, 0.3)
    marginals = oracle.marginals_of(ratings, objective)
    row, col = np.nonzero(ratings)
    x, weight = ratings[row, col], 0.2 + np.linspace(0, 3, len(row))
    one = np.ones(14), np.ones(9)
    m, d = objective.cells(x, row, col, marginals, *one, weight)
    s = np.random.default_rng(0).standard_normal(len(row))
    theirs = (weight * (x - s) ** 2).sum()
    assert ((d + objective.rho) * (m - s) ** 2).sum() == pytest.approx(theirs)
    assert objective.regularizers(marginals.row_cells, 9) == pytest.approx(np.full(14, 0.3))


def test_a_row_is_the_one_that_implicit_solves(ratings: np.ndarray) -> None:
    als = pytest.importorskip("implicit.cpu.als")
    from scipy.sparse import csr_matrix

    model = als.AlternatingLeastSquares(factors=K, regularization=0.3, alpha=2.5, use_cg=False, num_threads=1)
    v = np.random.default_rng(1).standard_normal((9, K)).astype(np.float32)
    model.item_factors = v
    theirs = model.recalculate_user(np.arange(14), csr_matrix(ratings.astype(np.float32)))
    problem = oracle.dense_problem(conventions.from_implicit(0.3, 2.5), ratings)
    ours, _ = oracle.half_step(problem, v.astype(float), np.zeros(9))
    assert np.abs(ours - theirs).max() < 1e-4
