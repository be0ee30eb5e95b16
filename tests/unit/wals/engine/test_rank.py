"""The rank program: loss, resume, any number of ranks, kills."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from oracles import wals as oracle

from wals_spark.cluster.process_group import LocalGroup
from wals_spark.errors import ConfigError, InputError
from wals_spark.objective import PRESETS
from wals_spark.wals.engine import checkpoint
from wals_spark.wals.engine.convergence import DivergedError
from wals_spark.wals.engine.rank import run
from wals_spark.wals.solvers.cpu import CpuSolver

GROUP = LocalGroup()


class StopAfterError(Exception):
    pass


def stop_after(last: int) -> Callable[[int], None]:
    def hook(half: int) -> None:
        if half == last:
            raise StopAfterError

    return hook


@pytest.mark.parametrize("preset", [name for name in PRESETS if name not in ("squared_norm", "custom")])
def test_losses_fall_to_the_loss_of_the_result(make_task, result_of, counts, preset) -> None:
    task = make_task(counts, preset, precision="float64")
    result = run(task, GROUP)
    losses = result["losses"]
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in itertools.pairwise(losses))
    problem = oracle.dense_problem(task.objective, counts)
    state = checkpoint.load(task.checkpoints, task.facts)
    x, y = (state.factors[side][:, : task.config.k] for side in ("row", "col"))
    if problem.bias:
        b, c = (state.factors[side][:, task.config.k] for side in ("row", "col"))
    else:
        b, c = np.zeros(len(counts)), np.zeros(len(counts))
    assert oracle.loss(problem, x, y, b, c) == pytest.approx(losses[-1], rel=1e-12)
    if not problem.bias and task.objective.is_quadratic:
        factors = result_of(task)
        residual = problem.weight * (problem.target - factors["row"] @ factors["col"].T.astype(np.float64)) ** 2
        unregularised = problem.weight * (problem.target - x @ y.T) ** 2
        assert residual.sum() == pytest.approx(unregularised.sum(), rel=1e-5)
    assert result["empty_rows"] == 1


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize(
    ("preset", "k"),
    [
        pytest.param("explicit", 100, marks=pytest.mark.slow),
        pytest.param("implicit", 100, marks=pytest.mark.slow),
        ("implicit", 67),
        ("glove", 70),
    ],
)
def test_losses_are_true_where_every_row_of_a_side_is_short(make_task, preset, k, precision) -> None:
    """No row of that side goes to Cholesky, so nothing of the half-step before may be kept until the one after."""
    rng = np.random.default_rng(0)
    counts = np.zeros((400, 110), np.int64)
    for row in counts:
        row[rng.choice(110, 30, replace=False)] = rng.integers(1, 6, 30)
    objective = replace(PRESETS[preset], regularization=0.05)
    task = make_task(counts, objective=objective, k=k, sweeps=3, precision=precision)
    losses = run(task, GROUP)["losses"]
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in itertools.pairwise(losses))
    state = checkpoint.load(task.checkpoints, task.facts)
    x, y = (state.factors[side].astype(np.float64) for side in ("row", "col"))
    b, c = (z[:, k] if preset == "glove" else np.zeros(len(z)) for z in (x, y))
    problem = oracle.dense_problem(objective, counts)
    assert losses[-1] == pytest.approx(oracle.loss(problem, x[:, :k], y[:, :k], b, c), rel=1e-4)
    u, b = oracle.half_step(problem, y[:, :k], c)
    v, c = oracle.half_step(problem.transposed, u, b)
    assert oracle.loss(problem, u, v, b, c) <= losses[-1] * (1 + 1e-6)


def test_a_factorisable_matrix_is_recovered(make_task, result_of) -> None:
    rng = np.random.default_rng(3)
    counts = np.exp(rng.integers(0, 3, (30, 1)) + rng.integers(0, 3, (1, 25))).round().astype(np.int64)
    objective = replace(PRESETS["glove"], bias="none", regularization=1e-6, weight_exponent=0.0)
    task = make_task(counts, objective=objective, k=3, sweeps=30, precision="float64")
    run(task, GROUP)
    factors = result_of(task)
    assert np.abs(factors["row"] @ factors["col"].T - np.log(counts)).max() < 0.02


def test_training_stops_when_the_loss_stands_still(make_task, counts) -> None:
    result = run(make_task(counts, sweeps=200, tolerance=1e-3), GROUP)
    assert result["converged"]
    assert 4 <= result["half_sweeps"] < 400
    before, after = result["losses"][-3], result["losses"][-1]
    assert (before - after) / before < 1e-3


@pytest.mark.parametrize("every", [1, 3])
def test_a_stopped_training_resumes_to_the_same_bits(make_task, result_of, counts, every) -> None:
    whole = make_task(counts, name="whole", checkpoint_every=every)
    expected = run(whole, GROUP)
    broken = make_task(counts, name="broken", checkpoint_every=every)
    with pytest.raises(StopAfterError):
        run(broken, GROUP, stop_after(5))
    result = run(broken, GROUP)
    assert result["resumed_at"] == 5 - 5 % every
    assert result["losses"] == expected["losses"]
    assert result_of(broken)["row"].tobytes() == result_of(whole)["row"].tobytes()


@pytest.mark.parametrize(("preset", "ranks"), [("glove", 2), ("ppmi", 3)])
def test_any_number_of_ranks_gives_the_same_factors(make_task, result_of, run_ranks, counts, preset, ranks) -> None:
    one = make_task(counts[:, :50], preset, name="one")
    run(one, GROUP)
    many = make_task(counts[:, :50], preset, name="many")
    run_ranks(many, ranks)
    for side in ("row", "col"):
        assert np.abs(result_of(one)[side] - result_of(many)[side]).max() < 1e-5


@pytest.mark.slow
def test_a_killed_rank_ends_the_others_and_the_resume_with_another_number_is_the_same(
    make_task, result_of, run_ranks, counts
) -> None:
    whole = make_task(counts, name="whole")
    run(whole, GROUP)
    killed = make_task(counts, name="killed")
    run_ranks(killed, 3, kill=(1, 3))
    result = run_ranks(killed, 2)
    assert result["resumed_at"] in (3, 4)
    assert np.abs(result_of(killed)["row"] - result_of(whole)["row"]).max() < 1e-5


def test_old_checkpoints_are_removed(make_task, counts) -> None:
    task = make_task(counts)
    run(task, GROUP)
    assert checkpoint.halves_in(task.checkpoints) == [6, 7, 8]


def test_a_lost_shard_falls_back_to_the_checkpoint_before(make_task, result_of, counts, caplog) -> None:
    task = make_task(counts)
    expected = run(task, GROUP)
    before = result_of(task)["row"]
    next(Path(task.checkpoints, "half-00008").glob("col-*")).unlink()
    result = run(task, GROUP)
    assert result["resumed_at"] == 7
    assert "half-sweep 8 is damaged" in caplog.text
    assert result["losses"] == expected["losses"]
    assert result_of(task)["row"].tobytes() == before.tobytes()


def test_a_truncated_shard_is_not_believed(make_task, counts, caplog) -> None:
    task = make_task(counts)
    run(task, GROUP)
    shard = next(Path(task.checkpoints, "half-00008").glob("col-*"))
    shard.write_bytes(shard.read_bytes()[:-7])
    assert run(task, GROUP)["half_sweeps"] == 8
    assert "is damaged and passed over" in caplog.text


def test_a_checkpoint_without_its_manifest_does_not_exist(make_task, counts) -> None:
    task = make_task(counts)
    with pytest.raises(StopAfterError):
        run(task, GROUP, stop_after(3))
    Path(task.checkpoints, "half-00003", checkpoint.MANIFEST).unlink()
    assert run(task, GROUP)["resumed_at"] == 2


def test_a_checkpoint_of_another_training_is_refused_with_both_fingerprints(make_task, counts) -> None:
    task = make_task(counts)
    run(task, GROUP)
    with pytest.raises(InputError, match="fingerprint f there, g here"):
        run(replace(task, facts={"fingerprint": "g"}), GROUP)


@pytest.mark.parametrize("shape", [(1, 9), (9, 1)])
def test_a_matrix_of_one_row_or_one_column(make_task, result_of, shape) -> None:
    counts = np.arange(1, 10).reshape(shape)
    task = make_task(counts, "implicit", k=1, sweeps=5)
    run(task, GROUP)
    assert result_of(task)["row"].shape == (shape[0], 1)
    assert np.isfinite(result_of(task)["col"]).all()


def test_an_empty_matrix_is_refused(make_task) -> None:
    with pytest.raises(InputError, match="no observed cell"):
        run(make_task(np.zeros((5, 5), np.int64)), GROUP)


def test_the_status_file_says_where_the_training_stands(make_task, counts) -> None:
    task = make_task(counts)
    result = run(task, GROUP)
    status = json.loads(Path(task.status_path).read_text())
    assert status["half_sweep"] == 8
    assert status["loss"] == result["losses"][-1]
    assert status["eta_s"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["ppmi", "implicit"])
def test_conjugate_gradients_fall_to_the_exact_loss(make_task, counts, preset) -> None:
    exact = run(make_task(counts, preset, name="exact", sweeps=60), GROUP)["losses"]
    steps = run(make_task(counts, preset, name="cg", sweeps=60, solver="cg"), GROUP)["losses"]
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in itertools.pairwise(steps))
    assert steps[-1] == pytest.approx(exact[-1], rel=5e-3)


def test_enough_conjugate_gradient_steps_are_the_exact_solution(make_task, result_of, counts) -> None:
    one = make_task(counts, name="exact", precision="float64")
    run(one, GROUP)
    many = make_task(counts, name="cg", precision="float64", solver="cg", cg_steps=40)
    run(many, GROUP)
    assert np.abs(result_of(one)["row"] - result_of(many)["row"]).max() < 1e-5


def test_squared_norm_lowers_its_true_loss(make_task, result_of, counts) -> None:
    task = make_task(counts, "squared_norm", precision="float64", sweeps=6)
    losses = run(task, GROUP)["losses"]
    assert all(later < earlier for earlier, later in itertools.pairwise(losses))
    assert losses[-1] < 0.2 * losses[0]
    problem = oracle.dense_problem(task.objective, counts)
    state = checkpoint.load(task.checkpoints, task.facts, {side: np.arange(len(counts)) for side in ("row", "col")})
    u, v = state.factors["row"], state.factors["col"]
    assert oracle.squared_norm_loss(problem, u, v) == pytest.approx(losses[-1], rel=1e-12)
    factors = result_of(task)
    assert np.abs(factors["row"] - u).max() < 1e-6, "sums of both sides count, so their gauge is not changed"


@pytest.mark.parametrize("preset", ["swivel", "squared_norm"])
def test_non_quadratic_objectives_resume_and_do_not_depend_on_the_ranks(
    make_task, result_of, run_ranks, counts, preset
) -> None:
    whole = make_task(counts[:, :50], preset, name="whole")
    expected = run(whole, GROUP)
    broken = make_task(counts[:, :50], preset, name="broken")
    with pytest.raises(StopAfterError):
        run(broken, GROUP, stop_after(3))
    assert run(broken, GROUP)["losses"] == expected["losses"]
    many = make_task(counts[:, :50], preset, name="many")
    run_ranks(many, 2)
    for side in ("row", "col"):
        assert np.abs(result_of(whole)[side] - result_of(broken)[side]).max() == 0
        assert np.abs(result_of(whole)[side] - result_of(many)[side]).max() < 1e-4


def test_swivel_goes_on_falling_where_its_bound_touches(make_task, counts) -> None:
    task = make_task(counts, "swivel", precision="float64", sweeps=60, tolerance=1e-3)
    result = run(task, GROUP)
    losses = result["losses"]
    assert result["converged"]
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in itertools.pairwise(losses))
    assert 0 <= (losses[-3] - losses[-1]) / losses[-3] < 1e-3


def test_fixed_biases_stay_as_the_marginals_give_them(make_task, counts) -> None:
    objective = replace(PRESETS["glove"], bias="fixed")
    task = make_task(counts, objective=objective, precision="float64")
    losses = run(task, GROUP)["losses"]
    problem = oracle.dense_problem(objective, counts)
    state = checkpoint.load(task.checkpoints, task.facts, {side: np.arange(len(counts)) for side in ("row", "col")})
    u, v = (state.factors[side][:, : task.config.k] for side in ("row", "col"))
    zero = np.zeros(len(counts))
    assert oracle.loss(problem, u, v, zero, zero) == pytest.approx(losses[-1], rel=1e-12)
    filled = counts.sum(1) > 0
    expected = np.log(counts.sum(1)[filled]) - 0.5 * np.log(counts.sum())
    assert np.allclose(state.factors["row"][filled, task.config.k], expected)


@pytest.mark.parametrize(
    ("preset", "bias"), [("ppmi", "none"), ("glove", "free"), ("glove", "fixed"), ("implicit", "none")]
)
def test_the_solver_of_least_cost_gives_the_exact_factors(
    make_task, result_of, counts, preset, bias, monkeypatch
) -> None:
    monkeypatch.setattr("wals_spark.wals.solvers.cpu.short_rows", lambda lengths, k: (lengths > 0) & (lengths < 20))
    monkeypatch.setattr("wals_spark.wals.engine.rank.rotation_pays", lambda cells, k, others: True)
    objective = replace(PRESETS[preset], bias=bias)
    exact = make_task(counts, objective=objective, name="exact", solver="exact", precision="float64")
    auto = make_task(counts, objective=objective, name="auto", solver="auto", precision="float64")
    expected, found = run(exact, GROUP)["losses"], run(auto, GROUP)["losses"]
    assert found == pytest.approx(expected, rel=1e-10)
    assert np.abs(result_of(exact)["row"] - result_of(auto)["row"]).max() < 1e-6


@pytest.mark.slow
def test_blocks_of_coordinates_fall_to_the_exact_loss(make_task, counts) -> None:
    exact = run(make_task(counts, name="exact", sweeps=60), GROUP)["losses"]
    blocks = run(make_task(counts, name="block", sweeps=60, solver="block", block_size=2), GROUP)["losses"]
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in itertools.pairwise(blocks))
    assert blocks[-1] == pytest.approx(exact[-1], rel=5e-3)


def test_a_loss_that_rises_raises_with_both_figures(make_task, counts, monkeypatch) -> None:
    solve = CpuSolver.solve

    def worse(self, block, system):
        x, row_loss = solve(self, block, system)
        return x, row_loss * (100.0 if system.start.any() else 1.0)

    monkeypatch.setattr(CpuSolver, "solve", worse)
    with pytest.raises(DivergedError, match=r"the loss rose from \d+\.\d+ to \d+\.\d+ in half-sweep 2"):
        run(make_task(counts), GROUP)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-5, 1e-7])
def test_the_tolerance_is_a_relative_decrease_of_a_sweep(make_task, counts, tolerance) -> None:
    losses = run(make_task(counts, sweeps=500, tolerance=tolerance, precision="float64"), GROUP)["losses"]
    decreases = [(losses[i - 2] - losses[i]) / losses[i - 2] for i in range(3, len(losses), 2)]
    assert decreases[-1] < tolerance
    assert all(decrease >= tolerance for decrease in decreases[:-1])


def test_non_quadratic_objectives_refuse_what_they_cannot_do(make_task, counts) -> None:
    with pytest.raises(ConfigError, match=r"swivel is computed from all factors and all cells.*found sharded"):
        make_task(counts, "swivel", exchange="sharded")


def test_weights_of_a_column_are_asked_for_and_only_then(make_task, counts) -> None:
    with pytest.raises(ConfigError, match="custom takes weights from a column; name it"):
        make_task(counts, "custom")
    with pytest.raises(ConfigError, match="ppmi takes weights from the counts, not from a column w"):
        make_task(counts, "ppmi", weight="w")


def test_targets_and_weights_of_a_table_are_fitted_as_given(tmp_path, make_task, result_of) -> None:
    rng = np.random.default_rng(2)
    target, weight = rng.standard_normal((12, 9)), rng.uniform(0, 3, (12, 9)) * (rng.random((12, 9)) < 0.7)
    weight[3, 4] = 2.0
    row, col = np.nonzero(weight)
    # One cell comes as two observations; another has no weight.
    row, col = np.r_[row, 3, 5], np.r_[col, 4, 0]
    value, heavy = target[row, col], weight[row, col]
    value[-2], heavy[-2], heavy[-1] = 5.0, 4.0, 0.0
    table = pa.table({"row_id": row.astype(np.int32), "col_id": col.astype(np.int32), "m": value, "w": heavy})
    pq.write_table(table, tmp_path / "cells.parquet")
    task = make_task(
        np.ones((12, 9), int), objective=PRESETS["custom"], weight="w", value="m", signed=True, k=3,
        files=(str(tmp_path / "cells.parquet"),), precision="float64", canonical=False,
    )  # fmt: skip
    losses = run(task, GROUP)["losses"]
    factors = result_of(task)
    u, v = factors["row"].astype(float), factors["col"].astype(float)
    observed = (heavy * (value - (u @ v.T)[row, col]) ** 2).sum() + 0.1 * ((u * u).sum() + (v * v).sum())
    merged = 2.0 * 4.0 / 6.0 * (target[3, 4] - 5.0) ** 2
    assert losses[-1] == pytest.approx(observed - merged, rel=1e-6)
    assert losses[-1] < losses[0]


def test_given_columns_are_where_the_training_starts(make_task, result_of, counts, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("wals_spark.wals.engine.start.VECTORS_AT_ONCE", 7)
    first = make_task(counts, "explicit", name="first", canonical=False)
    run(first, GROUP)
    columns = result_of(first)["col"]
    path = str(tmp_path / "columns.parquet")
    some = np.flatnonzero(np.arange(70) != 9)  # an empty column, which starts at zero in any case
    pq.write_table(pa.table({"id": some.astype(np.int64), "vector": list(columns[some])}), path)
    second = make_task(counts, "explicit", name="second", canonical=False, initial=path, sweeps=5)
    whole = make_task(counts, "explicit", name="whole", canonical=False, sweeps=9)
    assert run(second, GROUP)["losses"] == pytest.approx(run(whole, GROUP)["losses"][8:], rel=1e-5)


@pytest.mark.parametrize(
    ("ids", "vector", "message"),
    [
        ([1], [1.0] * 5, "initial factors have 5 numbers per vector, but k is 6"),
        ([70], [1.0] * 6, r"ids outside 0 \.\. 69"),
        ([1], [1.0] * 5 + [np.inf], "numbers that are not finite"),
    ],
)
def test_columns_that_cannot_be_started_from_are_refused(make_task, counts, tmp_path, ids, vector, message) -> None:
    path = str(tmp_path / "columns.parquet")
    pq.write_table(pa.table({"id": np.array(ids), "vector": [np.array(vector, np.float32)]}), path)
    with pytest.raises(InputError, match=message):
        run(make_task(counts, initial=path), GROUP)
