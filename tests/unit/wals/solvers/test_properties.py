"""Solvers on random systems against the objective itself, over all cells, in plain float64 NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wals_spark.wals.solvers import cpu
from wals_spark.wals.solvers.cpu import BlockSolver, ConjugateGradientSolver, CpuSolver, Solver
from wals_spark.wals.solvers.row_block import RowBlock
from wals_spark.wals.solvers.system import FixedFactors, System

# Of the sum of the terms of a loss; a thousand times what was found, which is the rounding of either precision.
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
LINE_AND_WOODBURY_WIDTHS = [1, 2, 7, 8, 9, 15, 16, 17, 33, 63, 64, 65, 80]
EXAMPLES = settings(max_examples=30, deadline=None, derandomize=True, database=None)


@dataclass(frozen=True)
class Problem:
    """A block, its system, and the same over all cells."""

    block: RowBlock
    system: System
    target: np.ndarray
    weight: np.ndarray
    tolerance: float

    def losses(self, x: np.ndarray) -> np.ndarray:
        """``sum_j w (m - z.[x, known])^2 + ridge.x^2 - 2 linear_term.x`` of every row."""
        free = x.shape[1]
        z, system = self.system.fixed_factors.z.astype(np.float64), self.system
        error = self.target - x @ z[:, :free].T - system.known @ z[:, free:].T
        losses = (self.weight * error**2).sum(1) + (system.ridge * x**2).sum(1)
        return losses if system.linear_term is None else losses - 2 * (system.linear_term * x).sum(1)

    def minimum(self) -> np.ndarray:
        """The rows of least loss, zeros for rows without cells."""
        system, free = self.system, self.system.ridge.shape[1]
        z = system.fixed_factors.z.astype(np.float64)
        x = np.zeros((len(self.block), free))
        for i in np.flatnonzero(self.block.lengths):
            a = (z[:, :free].T * self.weight[i]) @ z[:, :free] + np.diag(system.ridge[i])
            right = z[:, :free].T @ (self.weight[i] * (self.target[i] - z[:, free:] @ system.known[i]))
            x[i] = np.linalg.solve(a, right if system.linear_term is None else right + system.linear_term[i])
        return x

    def excess(self, x: np.ndarray, best: np.ndarray) -> np.ndarray:
        """The losses of rows above those of the best rows, without cancellation: ``(x - best).A (x - best)``."""
        z = self.system.fixed_factors.z[:, : x.shape[1]].astype(np.float64)
        return (self.weight * ((x - best) @ z.T) ** 2).sum(1) + (self.system.ridge * (x - best) ** 2).sum(1)

    def rounding(self, x: np.ndarray) -> np.ndarray:
        """What rounding may add to the losses of some rows: a share of the sum of their terms' absolute values."""
        free = x.shape[1]
        z, system = np.abs(self.system.fixed_factors.z.astype(np.float64)), self.system
        predicted = np.abs(x) @ z[:, :free].T + np.abs(system.known) @ z[:, free:].T
        size = (np.abs(self.weight) * (np.abs(self.target) + predicted) ** 2).sum(1) + (system.ridge * x**2).sum(1)
        return self.tolerance * size


def random_problem(
    seed: int, lengths: list[int], columns: int, k: int, dtype: str, rho: float, ridge: float, kind: str
) -> Problem:
    """`kind`: "plain", "negative" (weights below 0), "linear" (another term), "free" or "fixed" (biases)."""
    rng = np.random.default_rng(seed)
    rows = len(lengths)
    lengths = [min(length, columns) for length in lengths]
    known = {"free": 1, "fixed": 2}.get(kind, 0)
    width = k + (2 if known else 0)
    z = (rng.standard_normal((columns, width)) / np.sqrt(k)).astype(dtype)
    if known:
        z[:, k] = 1
    g, h = rng.uniform(0.5, 2, rows), rng.uniform(0.5, 2, columns)
    target, weight = np.zeros((rows, columns)), rho * np.outer(g, h)
    cells = [np.sort(rng.choice(columns, length, replace=False)) for length in lengths]
    indices = np.concatenate(cells).astype(np.int32)
    number = np.repeat(np.arange(rows), lengths)
    m = rng.standard_normal(len(indices)).astype(dtype)
    d = rng.uniform(0.1, 3, len(indices))
    if kind == "negative":
        d = np.where(rng.random(len(d)) < 0.3, -0.5 * weight[number, indices], d)
    d = d.astype(dtype)
    target[number, indices] = m
    weight[number, indices] += d
    block = RowBlock(np.arange(rows), np.r_[0, np.cumsum(lengths)].astype(np.int64), indices, m, d, g)
    ridges = np.full((rows, width - known), ridge)
    ridges[:, k:] = 0
    wide = z.astype(np.float64)
    system = System(
        FixedFactors(z, h, (wide.T * h) @ wide, rho),
        rng.standard_normal((rows, known)),
        ridges,
        rng.standard_normal((rows, width - known)).astype(dtype),
        rng.standard_normal((rows, k)) if kind == "linear" else None,
        int(kind == "free"),
    )
    return Problem(block, system, target, weight, TOLERANCE[dtype])


def problems(*kinds: str) -> st.SearchStrategy[Problem]:
    short = st.integers(0, 12)
    return st.builds(
        random_problem,
        seed=st.integers(0, 2**32 - 1),
        lengths=st.lists(st.one_of(short, st.sampled_from([0, 1, 1000])), min_size=1, max_size=8),
        columns=st.integers(1, 100),
        k=st.one_of(st.sampled_from(LINE_AND_WOODBURY_WIDTHS), st.integers(1, 80)),
        dtype=st.sampled_from(sorted(TOLERANCE)),
        rho=st.sampled_from([0.0, 0.05, 1.0]),
        ridge=st.sampled_from([0.1, 1.0, 10.0]),
        kind=st.sampled_from(kinds),
    )


def check_exact(solver: Solver, problem: Problem) -> None:
    x, row_loss = solver.solve(problem.block, problem.system)
    assert x.dtype == problem.system.fixed_factors.z.dtype
    best, filled = problem.minimum(), problem.block.lengths > 0
    rounding = problem.rounding(np.abs(best) + np.abs(x))
    # The loss is flat at its minimum: an error of the rows enters squared.
    assert (problem.excess(x, best) <= problem.tolerance * rounding)[filled].all()
    assert (np.abs(row_loss - problem.losses(x)) <= rounding)[filled].all()
    assert not x[~filled].any()
    assert not row_loss[~filled].any()


@EXAMPLES
@given(problems("plain", "negative", "linear", "free", "fixed"))
def test_cholesky_finds_the_minimum_and_its_loss(problem: Problem) -> None:
    check_exact(CpuSolver(2), problem)


@EXAMPLES
@given(problems("plain", "negative", "linear", "free", "fixed"), st.booleans())
def test_the_woodbury_form_finds_the_minimum_and_its_loss(problem: Problem, for_every_row: bool) -> None:
    chosen = (lambda lengths, k: lengths > 0) if for_every_row else cpu.short_rows
    with mock.patch.object(cpu, "short_rows", chosen):
        check_exact(CpuSolver(1, woodbury=True), problem)


@pytest.mark.parametrize("method", ["conjugate gradients", "blocks"])
@EXAMPLES
@given(problem=problems("plain", "negative"), size=st.integers(1, 20))
def test_a_step_never_raises_the_loss(method: str, problem: Problem, size: int) -> None:
    solver = ConjugateGradientSolver(2, size) if method == "conjugate gradients" else BlockSolver(2, size)
    start, filled = problem.system.start, problem.block.lengths > 0
    x, row_loss = solver.solve(problem.block, problem.system)
    rounding = problem.rounding(np.abs(start) + np.abs(x))
    assert (problem.losses(x) <= problem.losses(start.astype(np.float64)) + rounding)[filled].all()
    assert (np.abs(row_loss - problem.losses(x)) <= rounding)[filled].all()
    assert not x[~filled].any()
    assert not row_loss[~filled].any()


@EXAMPLES
@given(problems("linear"), st.integers(1, 20))
def test_a_step_of_blocks_never_raises_the_loss_with_a_linear_term(problem: Problem, width: int) -> None:
    start, filled = problem.system.start, problem.block.lengths > 0
    x, row_loss = BlockSolver(1, width).solve(problem.block, problem.system)
    rounding = problem.rounding(np.abs(start) + np.abs(x))
    assert (problem.losses(x) <= problem.losses(start.astype(np.float64)) + rounding)[filled].all()
    assert (np.abs(row_loss - problem.losses(x)) <= rounding)[filled].all()
