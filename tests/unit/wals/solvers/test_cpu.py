"""Solvers other than Cholesky against the float64 reference on single systems, random and degenerate."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from wals_spark.wals.solvers.cache_lines import pad_rows
from wals_spark.wals.solvers.cpu import (
    BlockSolver,
    ConjugateGradientSolver,
    CpuSolver,
    Solver,
    rotation_pays,
    short_rows,
)
from wals_spark.wals.solvers.row_block import RowBlock
from wals_spark.wals.solvers.system import FixedFactors, System

TOLERANCE = {"float32": 2e-3, "float64": 1e-9}
N, K = 90, 40


@pytest.fixture
def all_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row with cells goes through the Woodbury form first."""
    monkeypatch.setattr("wals_spark.wals.solvers.cpu.short_rows", lambda lengths, k: lengths > 0)


def block_of(lengths: list[int], dtype: str, seed: int = 0) -> RowBlock:
    rng = np.random.default_rng(seed)
    indices = np.concatenate([np.sort(rng.choice(N, n, replace=False)) for n in lengths]).astype(np.int32)
    cells = len(indices)
    m, d = rng.standard_normal(cells).astype(dtype), rng.uniform(0.1, 3, cells).astype(dtype)
    g = rng.uniform(0.5, 2, len(lengths))
    return RowBlock(np.arange(len(lengths)), np.r_[0, np.cumsum(lengths)], indices, m, d, g)


def system_of(block: RowBlock, dtype: str, *, rho: float, bias: str = "none", ridge: float = 0.3) -> System:
    """A system with random fixed factors; bias "free" has one more unknown, "fixed" two known coordinates."""
    rng = np.random.default_rng(1)
    rows = len(block.ids)
    extra = {"none": 0, "free": 2, "fixed": 2}[bias]
    fixed = {"none": 0, "free": 1, "fixed": 2}[bias]
    z = rng.standard_normal((N, K + extra)).astype(dtype)
    if extra:
        z[:, K] = 1
    h = rng.uniform(0.5, 2, N)
    wide = z.astype(np.float64)
    lambdas = np.full((rows, K + extra - fixed), ridge)
    lambdas[:, K:] = 0
    known = rng.standard_normal((rows, fixed))
    start = rng.standard_normal((rows, K + extra - fixed)).astype(dtype)
    fixed_factors = FixedFactors(z, h, (wide.T * h) @ wide, rho)
    return System(fixed_factors, known, lambdas, start, None, int(bias == "free"))


def exact(block: RowBlock, system: System) -> tuple[np.ndarray, np.ndarray]:
    """Solutions and losses of all rows in float64."""
    fixed = system.known.shape[1]
    z = system.fixed_factors.z.astype(np.float64)
    free = z.shape[1] - fixed
    out, losses = np.zeros((len(block.ids), free)), np.zeros(len(block.ids))
    for i in np.flatnonzero(block.lengths):
        part = slice(block.indptr[i], block.indptr[i + 1])
        near, m, d = z[block.indices[part]], block.target[part].astype(float), block.weight[part].astype(float)
        scale = system.fixed_factors.rho * block.popularity[i]
        a = scale * system.fixed_factors.gramian + (near.T * d) @ near
        coefficient = (d + scale * system.fixed_factors.h[block.indices[part]]) * m
        rhs = near.T @ coefficient
        known = system.known[i]
        right = rhs[:free] - a[:free, free:] @ known + (0 if system.linear_term is None else system.linear_term[i])
        inner = a[:free, :free] + np.diag(system.ridge[i])
        out[i] = np.linalg.solve(inner, right)
        constant = coefficient @ m - 2 * rhs[free:] @ known + known @ a[free:, free:] @ known
        losses[i] = constant - 2 * right @ out[i] + out[i] @ inner @ out[i]
    return out, losses


def check(solver: Solver, block: RowBlock, system: System, tolerance: float) -> None:
    solved, losses = solver.solve(block, system)
    expected, expected_losses = exact(block, system)
    assert np.abs(solved - expected).max() < tolerance * np.abs(expected).max()
    assert np.allclose(losses, expected_losses, rtol=tolerance, atol=tolerance)


LENGTHS = [0, 1, 2, 7, 15, 16, 17, 33, 39, 40, 41, 90]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("bias", ["none", "free", "fixed"])
@pytest.mark.parametrize("rho", [0.0, 0.2])
@pytest.mark.usefixtures("all_short")
def test_the_woodbury_form_solves_rows_of_every_length(dtype: str, bias: str, rho: float, caplog) -> None:
    block = block_of(LENGTHS, dtype)
    check(CpuSolver(2, woodbury=True), block, system_of(block, dtype, rho=rho, bias=bias), TOLERANCE[dtype])


@pytest.mark.parametrize("kind", ["woodbury", "block"])
@pytest.mark.usefixtures("all_short")
def test_another_term_in_the_right_hand_side(kind: str) -> None:
    block = block_of(LENGTHS, "float64")
    system = system_of(block, "float64", rho=0.2)
    system = replace(system, linear_term=np.random.default_rng(3).standard_normal(system.ridge.shape))
    solver = CpuSolver(1, woodbury=True) if kind == "woodbury" else BlockSolver(1, K)
    check(solver, block, system, 1e-9)


@pytest.mark.usefixtures("all_short")
def test_rows_that_the_woodbury_form_cannot_solve_are_solved_by_cholesky(monkeypatch) -> None:
    block = block_of([30, 30, 30], "float64")
    d = block.weight.copy()
    d[40] = -0.01
    system = system_of(block, "float64", rho=0.5)
    seen = []
    solver = CpuSolver(1, woodbury=True)
    whole = solver._solve_by_cholesky

    def recorded(block, system, rows, *rest):
        seen.append(rows.tolist())
        return whole(block, system, rows, *rest)

    monkeypatch.setattr(solver, "_solve_by_cholesky", recorded)
    check(solver, replace(block, weight=d), system, 1e-9)
    assert seen == [[1]]


@pytest.mark.usefixtures("all_short")
def test_cells_without_weight_and_repeated_columns_are_no_trouble() -> None:
    block = block_of([20, 20], "float64")
    d, m, indices = block.weight.copy(), block.target.copy(), block.indices.copy()
    d[3], m[3] = 0.0, 0.0
    indices[22] = indices[21]
    block = replace(block, weight=d, target=m, indices=indices)
    check(CpuSolver(1, woodbury=True), block, system_of(block, "float64", rho=0.2), 1e-9)


@pytest.mark.usefixtures("all_short")
def test_without_ridge_a_gramian_of_lower_rank_is_left_to_cholesky() -> None:
    block = block_of([50, 60], "float64")
    system = system_of(block, "float64", rho=0.2, ridge=0.0)
    z = system.fixed_factors.z.copy()
    z[:, 1] = z[:, 0] * (1 + 1e-9)
    z[0, 1] += 0.5
    gramian = (z.T * system.fixed_factors.h) @ z
    check(
        CpuSolver(1, woodbury=True),
        block,
        replace(system, fixed_factors=replace(system.fixed_factors, z=z, gramian=gramian)),
        1e-5,
    )


@pytest.mark.usefixtures("all_short")
def test_a_loss_that_may_be_too_high_sends_the_row_to_cholesky(monkeypatch) -> None:
    monkeypatch.setattr("wals_spark.wals.solvers.cpu.EXCESS_ALLOWED", {"float64": 0.0})
    block = block_of([10, 20], "float64")
    check(CpuSolver(1, woodbury=True), block, system_of(block, "float64", rho=0.2), 1e-10)


def test_short_rows_are_those_that_cost_less() -> None:
    lengths = np.array([0, 1, 20, 100, 2000, 5000])
    assert np.flatnonzero(short_rows(lengths, 512)).tolist() == [1, 2, 3]
    assert not short_rows(np.array([8, 20, 100]), 8).any()
    assert rotation_pays(np.full(1000, 20), 512, 1000)
    assert not rotation_pays(np.full(1000, 2000), 512, 1000)
    assert not rotation_pays(np.full(1000, 20), 512, 10**6)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rho", [0.0, 0.2])
def test_a_block_as_wide_as_the_row_is_the_exact_solution(dtype: str, rho: float) -> None:
    block = block_of(LENGTHS, dtype)
    check(BlockSolver(2, 64), block, system_of(block, dtype, rho=rho), TOLERANCE[dtype])


@pytest.mark.parametrize("solver", [BlockSolver(2, 16), BlockSolver(1, 7), ConjugateGradientSolver(2, 3)])
def test_improved_rows_never_get_worse_and_end_at_the_solution(solver: Solver) -> None:
    block = block_of(LENGTHS, "float64")
    system = system_of(block, "float64", rho=0.2, ridge=3.0)
    expected, lowest = exact(block, system)
    losses = []
    for _ in range(150):
        x, row_loss = solver.solve(block, system)
        losses.append(row_loss)
        system = replace(system, start=x)
    assert all((later <= earlier + 1e-9 * np.abs(earlier)).all() for earlier, later in itertools.pairwise(losses))
    assert np.allclose(losses[-1], lowest, rtol=1e-6)
    assert np.abs(x - expected).max() < 1e-3


def test_the_loss_of_a_block_solver_is_that_of_its_rows() -> None:
    block = block_of(LENGTHS, "float64")
    system = system_of(block, "float64", rho=0.2)
    x, row_loss = BlockSolver(1, 8).solve(block, system)
    z = system.fixed_factors.z
    for i in (1, 5, 9):
        part = slice(block.indptr[i], block.indptr[i + 1])
        j = block.indices[part]
        unobserved = system.fixed_factors.rho * block.popularity[i] * system.fixed_factors.h
        everywhere = (unobserved * (z @ x[i]) ** 2).sum() - (unobserved[j] * (z[j] @ x[i]) ** 2).sum()
        observed = (block.weight[part] + unobserved[j]) * (block.target[part] - z[j] @ x[i]) ** 2
        assert row_loss[i] == pytest.approx(everywhere + observed.sum() + 0.3 * x[i] @ x[i], rel=1e-10)


def test_a_giant_row_needs_no_memory_of_its_own_size_squared() -> None:
    """A row with a million cells among short ones: tiles are fixed, and the Woodbury form never sees it."""
    rng = np.random.default_rng(0)
    giant = np.tile(np.arange(N, dtype=np.int32), 12_000)
    short = block_of([3, 5], "float32")
    block = replace(
        short,
        ids=np.arange(3),
        indptr=np.r_[short.indptr, short.indptr[-1] + len(giant)],
        indices=np.r_[short.indices, giant],
        target=np.r_[short.target, rng.standard_normal(len(giant)).astype(np.float32)],
        weight=np.r_[short.weight, np.ones(len(giant), np.float32)],
        popularity=np.ones(3),
    )
    system = system_of(block, "float32", rho=0.2)
    check(CpuSolver(2, woodbury=True), block, system, 2e-3)


def test_blocks_of_a_half_step_share_one_copy_in_whole_lines(monkeypatch) -> None:
    block = block_of([10, 20], "float64")
    system, copies = system_of(block, "float64", rho=0.2), []
    pad = pad_rows
    monkeypatch.setattr("wals_spark.wals.solvers.system.pad_rows", lambda x: copies.append(x) or pad(x))
    solver = CpuSolver(1)
    first, second = solver.solve(block, system), solver.solve(block, system)
    assert len(copies) == 1
    assert np.array_equal(first[0], second[0])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("solver", [CpuSolver(1), CpuSolver(1, woodbury=True), BlockSolver(1, 16)])
def test_factors_that_changed_in_place_are_seen_by_the_next_half_step(solver: Solver, dtype: str) -> None:
    """The engine solves into arrays that it keeps: only what belongs to a half-step may be kept with it."""
    block = block_of(LENGTHS, dtype)
    first = system_of(block, dtype, rho=0.2)
    solver.solve(block, first)
    z = first.fixed_factors.z
    z[:] = z[::-1].copy()
    wide = z.astype(np.float64)
    gramian = (wide.T * first.fixed_factors.h) @ wide
    second = replace(first, start=None, fixed_factors=replace(first.fixed_factors, gramian=gramian))
    check(solver, block, second, TOLERANCE[dtype])
