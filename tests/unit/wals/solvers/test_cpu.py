"""Solvers other than Cholesky against the float64 reference on single systems, random and degenerate."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from wals_spark.wals.partition.side import Side
from wals_spark.wals.solvers.cache_lines import in_lines
from wals_spark.wals.solvers.cpu import (
    BlockSolver,
    ConjugateGradientSolver,
    CpuSolver,
    Solver,
    short_rows,
    turning_pays,
)
from wals_spark.wals.solvers.system import FixedFactors, System

TOLERANCE = {"float32": 2e-3, "float64": 1e-9}
N, K = 90, 40


@pytest.fixture
def all_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row with cells goes through the dual form first."""
    monkeypatch.setattr("wals_spark.wals.solvers.cpu.short_rows", lambda lengths, k: lengths > 0)
    monkeypatch.setattr("wals_spark.wals.solvers.cpu.turning_pays", lambda cells, k, others: True)


def side_of(lengths: list[int], dtype: str, seed: int = 0) -> Side:
    rng = np.random.default_rng(seed)
    indices = np.concatenate([np.sort(rng.choice(N, n, replace=False)) for n in lengths]).astype(np.int32)
    cells = len(indices)
    one, lengths_array = np.ones(len(lengths)), np.array(lengths)
    m, d = rng.standard_normal(cells).astype(dtype), rng.uniform(0.1, 3, cells).astype(dtype)
    g = rng.uniform(0.5, 2, len(lengths))
    rows = np.arange(len(lengths))
    return Side(
        rows.astype(np.int32), rows, np.r_[0, np.cumsum(lengths_array)], indices, m, d, g, g, one, lengths_array
    )


def system_of(side: Side, dtype: str, *, rho: float, bias: str = "none", ridge: float = 0.3) -> System:
    """A system with random features; bias "free" has one more unknown, "fixed" two held coordinates."""
    rng = np.random.default_rng(1)
    rows = len(side.rows)
    extra = {"none": 0, "free": 2, "fixed": 2}[bias]
    fixed = {"none": 0, "free": 1, "fixed": 2}[bias]
    features = rng.standard_normal((N, K + extra)).astype(dtype)
    if extra:
        features[:, K] = 1
    h = rng.uniform(0.5, 2, N)
    wide = features.astype(np.float64)
    lambdas = np.full((rows, K + extra - fixed), ridge)
    lambdas[:, K:] = 0
    held = rng.standard_normal((rows, fixed))
    start = rng.standard_normal((rows, K + extra - fixed)).astype(dtype)
    fixed_factors = FixedFactors(features, h, (wide.T * h) @ wide, rho)
    return System(fixed_factors, held, lambdas, start, None, int(bias == "free"))


def exact(side: Side, system: System) -> tuple[np.ndarray, np.ndarray]:
    """Solutions and losses of all rows in float64."""
    fixed = system.known.shape[1]
    z = system.fixed_factors.z.astype(np.float64)
    free = z.shape[1] - fixed
    out, losses = np.zeros((len(side.rows), free)), np.zeros(len(side.rows))
    for i in np.flatnonzero(np.diff(side.indptr)):
        part = slice(side.indptr[i], side.indptr[i + 1])
        near, m, d = z[side.indices[part]], side.m[part].astype(float), side.d[part].astype(float)
        scale = system.fixed_factors.rho * side.g[i]
        a = scale * system.fixed_factors.gramian + (near.T * d) @ near
        coefficient = (d + scale * system.fixed_factors.h[side.indices[part]]) * m
        rhs = near.T @ coefficient
        held = system.known[i]
        right = rhs[:free] - a[:free, free:] @ held + (0 if system.linear_term is None else system.linear_term[i])
        inner = a[:free, :free] + np.diag(system.ridge[i])
        out[i] = np.linalg.solve(inner, right)
        constant = coefficient @ m - 2 * rhs[free:] @ held + held @ a[free:, free:] @ held
        losses[i] = constant - 2 * right @ out[i] + out[i] @ inner @ out[i]
    return out, losses


def check(solver: Solver, side: Side, system: System, tolerance: float) -> None:
    solved, losses = solver.solve(side, system)
    expected, expected_losses = exact(side, system)
    assert np.abs(solved - expected).max() < tolerance * np.abs(expected).max()
    assert np.allclose(losses, expected_losses, rtol=tolerance, atol=tolerance)


LENGTHS = [0, 1, 2, 7, 15, 16, 17, 33, 39, 40, 41, 90]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("bias", ["none", "free", "fixed"])
@pytest.mark.parametrize("rho", [0.0, 0.2])
@pytest.mark.usefixtures("all_short")
def test_the_dual_form_solves_rows_of_every_length(dtype: str, bias: str, rho: float, caplog) -> None:
    side = side_of(LENGTHS, dtype)
    check(CpuSolver(2, dual=True), side, system_of(side, dtype, rho=rho, bias=bias), TOLERANCE[dtype])


@pytest.mark.parametrize("kind", ["dual", "block"])
@pytest.mark.usefixtures("all_short")
def test_another_term_in_the_right_hand_side(kind: str) -> None:
    side = side_of(LENGTHS, "float64")
    system = system_of(side, "float64", rho=0.2)
    system = replace(system, linear_term=np.random.default_rng(3).standard_normal(system.ridge.shape))
    solver = CpuSolver(1, dual=True) if kind == "dual" else BlockSolver(1, K)
    check(solver, side, system, 1e-9)


@pytest.mark.usefixtures("all_short")
def test_rows_that_the_dual_form_cannot_solve_are_solved_by_cholesky(monkeypatch) -> None:
    side = side_of([30, 30, 30], "float64")
    d = side.d.copy()
    d[40] = -0.01
    system = system_of(side, "float64", rho=0.5)
    seen = []
    solver = CpuSolver(1, dual=True)
    whole = solver._solve
    monkeypatch.setattr(
        solver, "_solve", lambda s, y, rows, *rest: (seen.append(rows.tolist()), whole(s, y, rows, *rest))[1]
    )
    check(solver, replace(side, d=d), system, 1e-9)
    assert seen == [[1]]


@pytest.mark.usefixtures("all_short")
def test_cells_without_weight_and_repeated_columns_are_no_trouble() -> None:
    side = side_of([20, 20], "float64")
    d, m, indices = side.d.copy(), side.m.copy(), side.indices.copy()
    d[3], m[3] = 0.0, 0.0
    indices[22] = indices[21]
    side = replace(side, d=d, m=m, indices=indices)
    check(CpuSolver(1, dual=True), side, system_of(side, "float64", rho=0.2), 1e-9)


@pytest.mark.usefixtures("all_short")
def test_without_ridge_a_gramian_of_lower_rank_is_left_to_cholesky() -> None:
    side = side_of([50, 60], "float64")
    system = system_of(side, "float64", rho=0.2, ridge=0.0)
    features = system.fixed_factors.z.copy()
    features[:, 1] = features[:, 0] * (1 + 1e-9)
    features[0, 1] += 0.5
    gramian = (features.T * system.fixed_factors.h) @ features
    check(
        CpuSolver(1, dual=True),
        side,
        replace(system, fixed_factors=replace(system.fixed_factors, z=features, gramian=gramian)),
        1e-5,
    )


@pytest.mark.usefixtures("all_short")
def test_a_loss_that_may_be_too_high_sends_the_row_to_cholesky(monkeypatch) -> None:
    monkeypatch.setattr("wals_spark.wals.solvers.cpu.EXCESS_ALLOWED", {"float64": 0.0})
    side = side_of([10, 20], "float64")
    check(CpuSolver(1, dual=True), side, system_of(side, "float64", rho=0.2), 1e-10)


def test_short_rows_are_those_that_cost_less() -> None:
    lengths = np.array([0, 1, 20, 100, 2000, 5000])
    assert np.flatnonzero(short_rows(lengths, 512)).tolist() == [1, 2, 3]
    assert not short_rows(np.array([8, 20, 100]), 8).any()
    assert turning_pays(np.full(1000, 20), 512, 1000)
    assert not turning_pays(np.full(1000, 2000), 512, 1000)
    assert not turning_pays(np.full(1000, 20), 512, 10**6)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rho", [0.0, 0.2])
def test_a_block_as_wide_as_the_row_is_the_exact_solution(dtype: str, rho: float) -> None:
    side = side_of(LENGTHS, dtype)
    check(BlockSolver(2, 64), side, system_of(side, dtype, rho=rho), TOLERANCE[dtype])


@pytest.mark.parametrize("solver", [BlockSolver(2, 16), BlockSolver(1, 7), ConjugateGradientSolver(2, 3)])
def test_improved_rows_never_get_worse_and_end_at_the_solution(solver: Solver) -> None:
    side = side_of(LENGTHS, "float64")
    system = system_of(side, "float64", rho=0.2, ridge=3.0)
    expected, lowest = exact(side, system)
    losses = []
    for _ in range(150):
        x, row_loss = solver.solve(side, system)
        losses.append(row_loss)
        system = replace(system, start=x)
    assert all((later <= earlier + 1e-9 * np.abs(earlier)).all() for earlier, later in itertools.pairwise(losses))
    assert np.allclose(losses[-1], lowest, rtol=1e-6)
    assert np.abs(x - expected).max() < 1e-3


def test_the_loss_of_a_block_solver_is_that_of_its_rows() -> None:
    side = side_of(LENGTHS, "float64")
    system = system_of(side, "float64", rho=0.2)
    x, row_loss = BlockSolver(1, 8).solve(side, system)
    z = system.fixed_factors.z
    for i in (1, 5, 9):
        part = slice(side.indptr[i], side.indptr[i + 1])
        j = side.indices[part]
        unobserved = system.fixed_factors.rho * side.g[i] * system.fixed_factors.h
        everywhere = (unobserved * (z @ x[i]) ** 2).sum() - (unobserved[j] * (z[j] @ x[i]) ** 2).sum()
        observed = (side.d[part] + unobserved[j]) * (side.m[part] - z[j] @ x[i]) ** 2
        assert row_loss[i] == pytest.approx(everywhere + observed.sum() + 0.3 * x[i] @ x[i], rel=1e-10)


def test_a_giant_row_needs_no_memory_of_its_own_size_squared(monkeypatch) -> None:
    """A row with a million cells among short ones: tiles are fixed, and the dual form never sees it."""
    rng = np.random.default_rng(0)
    giant = np.tile(np.arange(N, dtype=np.int32), 12_000)
    short = side_of([3, 5], "float32")
    side = replace(
        short,
        owner=np.zeros(3, np.int32),
        rows=np.arange(3),
        indptr=np.r_[short.indptr, short.indptr[-1] + len(giant)],
        indices=np.r_[short.indices, giant],
        m=np.r_[short.m, rng.standard_normal(len(giant)).astype(np.float32)],
        d=np.r_[short.d, np.ones(len(giant), np.float32)],
        g=np.ones(3),
        cells=np.array([3, 5, len(giant)]),
    )
    system = system_of(side, "float32", rho=0.2)
    monkeypatch.setattr("wals_spark.wals.solvers.cpu.turning_pays", lambda cells, k, others: True)
    check(CpuSolver(2, dual=True), side, system, 2e-3)


def test_blocks_of_a_half_step_share_one_copy_in_whole_lines(monkeypatch) -> None:
    side = side_of([10, 20], "float64")
    system, copies = system_of(side, "float64", rho=0.2), []
    pad = in_lines
    monkeypatch.setattr("wals_spark.wals.solvers.system.in_lines", lambda x: copies.append(x) or pad(x))
    solver = CpuSolver(1)
    first, second = solver.solve(side, system), solver.solve(side, system)
    assert len(copies) == 1
    assert np.array_equal(first[0], second[0])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("solver", [CpuSolver(1), CpuSolver(1, dual=True), BlockSolver(1, 16)])
def test_factors_that_changed_in_place_are_seen_by_the_next_half_step(solver: Solver, dtype: str) -> None:
    """The engine solves into the arrays that it holds: only what belongs to a half-step may be kept with it."""
    side = side_of(LENGTHS, dtype)
    first = system_of(side, dtype, rho=0.2)
    solver.solve(side, first)
    z = first.fixed_factors.z
    z[:] = z[::-1].copy()
    wide = z.astype(np.float64)
    gramian = (wide.T * first.fixed_factors.h) @ wide
    second = replace(first, start=None, fixed_factors=replace(first.fixed_factors, gramian=gramian))
    check(solver, side, second, TOLERANCE[dtype])
