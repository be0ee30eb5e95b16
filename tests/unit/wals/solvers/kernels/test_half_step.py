"""The half-step kernels against the float64 reference over the dense matrix."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from oracles import wals as oracle

from wals_spark.cluster.process_group import LocalGroup
from wals_spark.errors import InputError
from wals_spark.matrix.coo import Coo
from wals_spark.objective import PRESETS, Objective
from wals_spark.wals.engine.factors import FactorLayout
from wals_spark.wals.partition.build import build_sides
from wals_spark.wals.partition.side import Side
from wals_spark.wals.solvers.cpu import CpuSolver, Solver
from wals_spark.wals.solvers.system import FixedFactors, System

GROUP = LocalGroup()
# Float32 products of a few dozen terms, then a solve of a well conditioned system.
TOLERANCE = {"float32": 2e-4, "float64": 1e-10}
VARIANTS = {
    **{name: objective for name, objective in PRESETS.items() if objective.is_quadratic},
    "custom": replace(PRESETS["custom"], weight="power"),  # as it is, weights come with the cells
    "smoothed": replace(PRESETS["ppmi"], context_smoothing=0.75, shift=2.0),
    "counted ridge": replace(PRESETS["ppmi"], regularization=0.01, regularization_exponent=1.0),
    # An observed cell may weigh less than an unobserved one: negative extra weights.
    "replaced": replace(PRESETS["ppmi"], additive=False, rho=0.5),
    "biased": replace(PRESETS["ppmi"], bias="free", rho=0.1),
    "fixed": replace(PRESETS["glove"], bias="fixed"),
    "fixed, unobserved": replace(PRESETS["glove"], bias="fixed", rho=0.3),
    "fixed ratings": replace(PRESETS["explicit"], bias="fixed"),
}


def solvers() -> dict[str, Solver]:
    found: dict[str, Solver] = {"cpu": CpuSolver(2)}
    from wals_spark.wals.solvers.gpu.torch_solver import TorchSolver

    found["torch"] = TorchSolver("cpu", bytes_at_once=1 << 16, longest=13)
    return found


def sides_of(counts: np.ndarray, objective: Objective, dtype: str, symmetric: bool = False) -> tuple[Side, Side]:
    rows, cols = np.nonzero(counts)
    cells = Coo(rows.astype(np.int32), cols.astype(np.int32), counts[rows, cols].astype(np.int64))
    return build_sides(GROUP, cells, counts.shape, objective, symmetric=symmetric, unit=1, k=6, dtype=np.dtype(dtype))


def solve(
    solver: Solver, side: Side, h: np.ndarray, z: np.ndarray, model: FactorLayout, rho: float
) -> tuple[np.ndarray, np.ndarray]:
    x = np.zeros((len(side.ids), model.width))
    if model.bias == "fixed":
        x[:, model.k] = side.offsets[side.ids]
    system = System(
        FixedFactors(z, h, (z.T.astype(np.float64) * h) @ z, rho), model.known(x), model.ridge(side.ridge[side.ids]),
        biases=model.unknowns - model.k,
    )  # fmt: skip
    (block,) = side.blocks
    return solver.solve(block.rows, system)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("kernel", ["cpu", "torch"])
@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
def test_a_half_step_solves_the_reference_problem(
    counts: np.ndarray, kernel: str, name: str, dtype: str, transposed: bool
) -> None:
    objective, k = VARIANTS[name], 6
    counts = counts[:, :50]
    row, col = sides_of(counts, objective, dtype)
    problem = oracle.dense_problem(objective, counts)
    side, fixed = (col, row) if transposed else (row, col)
    problem = problem.transposed if transposed else problem
    rng = np.random.default_rng(1)
    biased = objective.bias == "free"
    model = FactorLayout(k, objective.bias)
    x = rng.standard_normal((fixed.size, model.width)).astype(dtype)
    if objective.bias == "fixed":
        x[:, k] = fixed.offsets
    x[fixed.cell_counts == 0] = 0
    v, c = x[:, :k].astype(np.float64), x[:, k].astype(np.float64) if biased else np.zeros(fixed.size)
    u, b = oracle.half_step(problem, v, c)
    solved, row_loss = solve(solvers()[kernel], side, fixed.popularity, model.features(x), model, objective.rho)
    size = np.abs(u).max()
    assert np.abs(solved[:, :k] - u).max() < TOLERANCE[dtype] * size
    if biased:
        assert np.abs(solved[:, k] - b).max() < TOLERANCE[dtype] * np.abs(b).max()
    expected = oracle.loss(problem, u, v, b, c) - problem.col_lambda @ (v * v).sum(1)
    assert row_loss.sum() == pytest.approx(expected, rel=1e-6 if dtype == "float32" else 1e-12)


def test_cells_beyond_one_tile_are_all_counted(counts: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    row, col = sides_of(counts, PRESETS["ppmi"], "float64")
    z = np.random.default_rng(2).standard_normal((col.size, 6))
    model = FactorLayout(6, "none")
    whole, _ = solve(CpuSolver(1), row, col.popularity, z, model, 0.005)
    monkeypatch.setattr("wals_spark.wals.solvers.cpu.TILE", 3)
    pieces, _ = solve(CpuSolver(1), row, col.popularity, z, model, 0.005)
    assert np.allclose(whole, pieces, rtol=1e-12)


def test_wide_rows_are_solved_as_narrow_ones_are(counts: np.ndarray) -> None:
    k = 200
    for objective in (PRESETS["ppmi"], VARIANTS["replaced"]):
        row, col = sides_of(counts, objective, "float64")
        z = np.random.default_rng(2).standard_normal((col.size, k))
        z[col.cell_counts == 0] = 0
        solved, _ = solve(CpuSolver(1), row, col.popularity, z, FactorLayout(k, "none"), objective.rho)
        u, _ = oracle.half_step(oracle.dense_problem(objective, counts), z, np.zeros(col.size))
        assert np.allclose(solved, u, atol=1e-9)


def test_threads_change_no_bit(counts: np.ndarray) -> None:
    row, col = sides_of(counts, PRESETS["ppmi"], "float32")
    z = np.random.default_rng(2).standard_normal((col.size, 6)).astype(np.float32)
    model = FactorLayout(6, "none")
    one, _ = solve(CpuSolver(1), row, col.popularity, z, model, 0.005)
    four, _ = solve(CpuSolver(4), row, col.popularity, z, model, 0.005)
    assert one.tobytes() == four.tobytes()


def test_a_symmetric_layout_gives_what_two_layouts_give(counts: np.ndarray) -> None:
    for objective in (PRESETS["ppmi"], VARIANTS["smoothed"]):
        (apart,) = sides_of(counts, objective, "float64")[1].blocks
        (shared,) = sides_of(counts, objective, "float64", symmetric=True)[1].blocks
        assert np.allclose(apart.rows.target, shared.rows.target, rtol=1e-13)
        assert np.allclose(apart.rows.weight, shared.rows.weight, rtol=1e-13)
        assert np.array_equal(apart.rows.indices, shared.rows.indices)


def test_a_matrix_that_is_not_symmetric_is_found_out(counts: np.ndarray) -> None:
    counts[3, 4] += 1
    with pytest.raises(InputError, match="said to be symmetric, but row"):
        sides_of(counts, PRESETS["ppmi"], "float32", symmetric=True)


@pytest.mark.parametrize("kernel", ["cpu", "torch"])
def test_a_singular_row_is_named(kernel: str) -> None:
    counts = np.zeros((8, 8), np.int64)
    counts[2, 3] = counts[3, 3] = 4
    objective = replace(PRESETS["glove"], bias="none", regularization=1e-300)
    row, col = sides_of(counts, objective, "float32")
    z = np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32)
    with pytest.raises(InputError, match=r"2 rows have no unique solution \(ids 2, 3\)"):
        solve(solvers()[kernel], row, col.popularity, z, FactorLayout(6, "none"), 0.0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias", ["none", "free"])
def test_rows_are_solved_without_regularisation_where_they_have_a_unique_solution(dtype: str, bias: str) -> None:
    rng = np.random.default_rng(0)
    ratings = rng.integers(1, 6, (12, 9))
    objective = replace(PRESETS["explicit"], regularization=0.0, bias=bias)
    row, col = sides_of(ratings, objective, dtype)
    layout, x = FactorLayout(4, bias), rng.standard_normal((9, 5)).astype(dtype)
    x[:, 4] = 0
    z = layout.features(x[:, : layout.width])
    solved, _ = solve(CpuSolver(1, woodbury=True), row, col.popularity, z, layout, 0.0)
    columns = np.hstack([x[:, :4], np.ones((9, 1))]) if bias == "free" else x[:, :4]
    expected = np.linalg.lstsq(columns.astype(np.float64), ratings.T, rcond=None)[0].T
    assert np.allclose(solved, expected, rtol=1e-3 if dtype == "float32" else 1e-9, atol=1e-4)


@pytest.mark.parametrize("kernel", ["cpu", "torch"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("k", [4, 5, 33])
def test_rows_without_a_unique_solution_are_named_without_regularisation(kernel: str, dtype: str, k: int) -> None:
    """Row 2 has fewer cells than factors; row 5 has as many, but two of its columns are the same."""
    rng = np.random.default_rng(0)
    ratings = rng.integers(1, 6, (12, k + 3))
    ratings[2, k - 1 :] = 0
    ratings[5, k:] = 0
    row, col = sides_of(ratings, replace(PRESETS["explicit"], regularization=0.0), dtype)
    z = rng.standard_normal((k + 3, k)).astype(dtype)
    z[k - 1] = z[0]
    with pytest.raises(InputError, match=r"2 rows have no unique solution \(ids 2, 5\)"):
        solve(
            CpuSolver(1, woodbury=True) if kernel == "cpu" else solvers()[kernel],
            row,
            col.popularity,
            z,
            FactorLayout(k, "none"),
            0.0,
        )
