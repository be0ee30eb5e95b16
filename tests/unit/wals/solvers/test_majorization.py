"""Objectives that are not quadratic in one side, against dense oracles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from oracles import wals as oracle

from wals_spark.objective import PRESETS
from wals_spark.wals.partition.side import Side, SideBlock
from wals_spark.wals.solvers.cpu import CpuSolver
from wals_spark.wals.solvers.gauss_newton import SquaredNormGaussNewton
from wals_spark.wals.solvers.non_quadratic import make_row_update
from wals_spark.wals.solvers.row_block import RowBlock
from wals_spark.wals.solvers.row_update import Offsets
from wals_spark.wals.solvers.system import FixedFactors, System

TOLERANCE = {"float32": 3e-4, "float64": 1e-9}


def sides_of(counts: np.ndarray, preset: str, dtype: str) -> tuple[Side, Side, oracle.DenseProblem]:
    """Rows and columns of a dense matrix as one rank holds them, built by hand."""
    objective = PRESETS[preset]
    sides = []
    marginals = oracle.marginals_of(counts, objective)
    for seen, values, swapped in ((marginals, counts, False), (marginals.transposed, counts.T, True)):
        own, other = np.nonzero(values)
        g = objective.popularity(seen.rows, seen.row_cells)
        h = objective.popularity(seen.cols, seen.col_cells)
        row, col = (other, own) if swapped else (own, other)
        m, d = objective.cells(values[own, other].astype(float), row, col, marginals, *((h, g) if swapped else (g, h)))
        totals = (seen.total, int(seen.row_cells.sum()))
        offsets = objective.offsets(seen.rows, seen.row_cells, totals)
        size = len(values)
        rows = RowBlock(
            np.arange(size), np.r_[0, np.cumsum((values != 0).sum(1))], other.astype(np.int32), m.astype(dtype),
            d.astype(dtype), g,
        )  # fmt: skip
        sides.append(
            Side(
                np.zeros(size, np.int32), np.arange(size), g, objective.regularizers(seen.row_cells, len(seen.cols)),
                seen.row_cells, seen.rows, offsets, [SideBlock(rows)],
            )
        )  # fmt: skip
    return sides[0], sides[1], oracle.dense_problem(objective, counts)


def rows_of(side: Side) -> RowBlock:
    (block,) = side.blocks
    return block.rows


def offsets_of(side: Side, fixed: Side) -> Offsets:
    return Offsets(side.offsets, fixed.offsets, fixed.cell_counts > 0)


def system_of(side: Side, fixed: Side, u: np.ndarray, v: np.ndarray, rho: float) -> System:
    gramian = (v.astype(float).T * fixed.popularity) @ v
    ridge = np.repeat(side.ridge[:, None], v.shape[1], 1)
    return System(FixedFactors(v, fixed.popularity, gramian, rho), np.zeros((len(u), 0)), ridge, u)


def factors(counts: np.ndarray, k: int, dtype: str, scale: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    u, v = (scale * rng.standard_normal((size, k)).astype(dtype) for size in counts.shape)
    u[counts.sum(1) == 0] = 0
    v[counts.sum(0) == 0] = 0
    return u, v


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
def test_swivel_minimises_the_upper_bound(counts, dtype, transposed) -> None:
    counts = counts[:, :50]
    row, col, problem = sides_of(counts, "swivel", dtype)
    u, v = factors(counts, 6, dtype)
    if transposed:
        row, col, problem, u, v = col, row, problem.transposed, v, u
    update = make_row_update(PRESETS["swivel"], 2)
    sums = update.evaluate(rows_of(row), u, v, offsets_of(row, col))
    expected = oracle.loss(problem, u, v, np.zeros(len(u)), np.zeros(len(v)))
    ridge = problem.row_lambda @ (u.astype(float) ** 2).sum(1) + problem.col_lambda @ (v.astype(float) ** 2).sum(1)
    assert update.loss(sums) + ridge == pytest.approx(expected, rel=1e-6 if dtype == "float32" else 1e-12)
    better = update.update_rows(rows_of(row), system_of(row, col, u, v, 0.125), CpuSolver(2))
    exact = oracle.softplus_step(problem, u.astype(float), v.astype(float))
    assert np.abs(better - exact).max() < TOLERANCE[dtype] * np.abs(exact).max()
    assert oracle.loss(problem, better, v, np.zeros(len(u)), np.zeros(len(v))) < expected


def test_swivel_blocks_of_cells_are_all_counted(counts, monkeypatch) -> None:
    row, col, _ = sides_of(counts, "swivel", "float64")
    u, v = factors(counts, 6, "float64")
    whole = make_row_update(PRESETS["swivel"], 1)
    expected = whole.evaluate(rows_of(row), u, v, offsets_of(row, col))
    monkeypatch.setattr("wals_spark.wals.solvers.majorization.DENSE_ROWS", 7)
    monkeypatch.setattr("wals_spark.wals.solvers.majorization.DENSE_COLS", 11)
    pieces = make_row_update(PRESETS["swivel"], 3)
    assert np.allclose(pieces.evaluate(rows_of(row), u, v, offsets_of(row, col)), expected, rtol=1e-12)
    assert np.allclose(pieces.linear_term, whole.linear_term, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_series_of_the_softplus_are_as_exact_as_their_numbers(dtype) -> None:
    from numba import njit

    from wals_spark.wals.solvers.kernels.softplus import exp_of_minus, log_of_one_plus

    @njit
    def both(x):  # type: ignore[no-untyped-def]
        return exp_of_minus(x), log_of_one_plus(exp_of_minus(x))

    rounding = np.finfo(dtype).eps
    for x in (0.0, 1e-9, 0.3, 0.35, 1.0, 7.7, 40.0, 80.0):
        e, log = both(np.dtype(dtype).type(x))
        exact = float(np.dtype(dtype).type(x))
        assert abs(e - np.exp(-exact)) <= 4 * rounding * np.exp(-exact)
        assert abs(log - np.log1p(np.exp(-exact))) <= 6 * rounding * np.log1p(np.exp(-exact))
    assert 0 < both(np.dtype(dtype).type(1e30))[0] < 1e-37


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("scale", [0.05, 0.5, 3.0])
def test_squared_norm_takes_the_reference_step(counts, dtype, scale) -> None:
    counts = counts[:, :50]
    row, col, problem = sides_of(counts, "squared_norm", dtype)
    u, v = factors(counts, 6, dtype, scale)
    update = make_row_update(PRESETS["squared_norm"], 2)
    assert isinstance(update, SquaredNormGaussNewton)
    ridge = problem.row_lambda @ (u.astype(float) ** 2).sum(1) + problem.col_lambda @ (v.astype(float) ** 2).sum(1)
    loss = update.loss(update.evaluate(rows_of(row), u, v, offsets_of(row, col))) + ridge
    u, v = u.astype(float), v.astype(float)
    assert loss == pytest.approx(oracle.squared_norm_loss(problem, u, v), rel=1e-5 if dtype == "float32" else 1e-12)
    assert update.constant == pytest.approx(oracle.squared_norm_constant(problem, u, v), rel=1e-5)
    better = update.update_rows(rows_of(row), system_of(row, col, u.astype(dtype), v.astype(dtype), 0.0), CpuSolver(2))
    expected = oracle.squared_norm_step(problem, u, v)
    assert np.abs(better - expected).max() < 10 * TOLERANCE[dtype] * np.abs(expected).max()
    assert oracle.squared_norm_loss(problem, better, v) < oracle.squared_norm_loss(problem, u, v)


def test_a_row_that_cannot_fall_stays() -> None:
    counts = np.full((4, 4), 3)
    row, col, _ = sides_of(counts, "squared_norm", "float64")
    row = replace(row, ridge=np.full(4, 1e-12))
    u = v = np.zeros((4, 2))
    update = make_row_update(PRESETS["squared_norm"], 1)
    update.loss(update.evaluate(rows_of(row), u, v, offsets_of(row, col)))
    assert not update.update_rows(rows_of(row), system_of(row, col, u, v, 0.0), CpuSolver(1)).any()
