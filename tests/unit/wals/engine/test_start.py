"""Factors that a training starts from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from oracles import wals as oracle

from wals_spark.cluster.process_group import LocalGroup
from wals_spark.objective import PRESETS
from wals_spark.wals.engine.rank import run
from wals_spark.wals.engine.task import RankTask


@pytest.mark.parametrize("initial", [False, True])
def test_no_sweep_gives_starting_factors_of_both_sides(
    tmp_path: Path,
    make_task: Callable[..., RankTask],
    result_of: Callable[[RankTask], dict[str, np.ndarray]],
    initial: bool,
) -> None:
    counts = np.array([[3, 0, 1], [0, 0, 2], [0, 0, 0], [5, 0, 0]])
    path = tmp_path / "initial.parquet"
    pq.write_table(pa.table({"id": [0], "vector": [[2.0, 3.0]]}), path)
    changes = {"initial": str(path)} if initial else {}
    task = make_task(counts, "implicit", k=2, start="positive", canonical=False, start_only=True, **changes)
    assert run(task, LocalGroup())["losses"] == []
    factors = result_of(task)
    filled = np.array([True, True, False, True])
    assert np.allclose(np.linalg.norm(factors["row"], axis=1), filled)
    assert (factors["row"][filled] > 0).all()
    assert np.allclose(factors["col"][0], [2.0, 3.0]) == initial
    assert np.linalg.norm(factors["col"][2]) == pytest.approx(1.0)


def test_unit_vectors_have_both_signs_and_the_columns_may_be_solved_first(make_task, result_of) -> None:
    counts = np.random.default_rng(0).integers(1, 9, (40, 30))
    first = make_task(counts, "implicit", name="none", k=5, start="unit", first="col", canonical=False, start_only=True)
    run(first, LocalGroup())
    start = result_of(first)["row"]
    assert np.allclose(np.linalg.norm(start, axis=1), 1.0, atol=1e-6)
    assert 0.3 < (start > 0).mean() < 0.7
    task = make_task(counts, "implicit", k=5, sweeps=1, start="unit", first="col", canonical=False, precision="float64")
    run(task, LocalGroup())
    problem = oracle.dense_problem(task.objective, counts)
    v, _ = oracle.half_step(problem.transposed, start.astype(np.float64), np.zeros(40))
    u, _ = oracle.half_step(problem, v, np.zeros(30))
    found = result_of(task)
    assert np.abs(found["col"] - v).max() < 1e-5
    assert np.abs(found["row"] - u).max() < 1e-5


def test_a_training_that_begins_with_columns_resumes_to_the_same(make_task, result_of) -> None:
    counts = np.random.default_rng(0).integers(0, 4, (25, 20))
    settings = {"k": 3, "sweeps": 3, "start": "unit", "first": "col", "checkpoint_every": 1}
    whole, cut = (make_task(counts, "implicit", name=name, **settings) for name in ("whole", "cut"))
    expected = run(whole, LocalGroup())

    class StopError(Exception):
        pass

    def stop(half: int) -> None:
        if half == 3:
            raise StopError

    with pytest.raises(StopError):
        run(cut, LocalGroup(), stop)
    resumed = run(cut, LocalGroup())
    assert resumed["resumed_at"] == 3
    assert resumed["losses"] == expected["losses"]
    for side, factors in result_of(whole).items():
        assert np.array_equal(result_of(cut)[side], factors)


@pytest.mark.parametrize("seed", range(5))
def test_a_matrix_of_rank_one_with_alternating_signs_is_recovered(make_task, seed) -> None:
    a, b = np.where(np.arange(30) % 2, -1, 1), np.where(np.arange(20) % 3, -1, 1)
    task = make_task(
        np.outer(a, b), objective=replace(PRESETS["explicit"], regularization=1e-4), k=4, sweeps=20, seed=seed,
        start="unit", first="col", signed=True, canonical=False,
    )  # fmt: skip
    assert run(task, LocalGroup())["losses"][-1] < 1.0, "0 alone is 600"
