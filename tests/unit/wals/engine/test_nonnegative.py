"""Trainings without negative factors: every half-step is the constrained minimum of every row."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from oracles import wals as oracle
from scipy.optimize import nnls

from wals_spark.cluster.process_group import LocalGroup
from wals_spark.errors import ConfigError
from wals_spark.objective import PRESETS
from wals_spark.wals.engine import checkpoint
from wals_spark.wals.engine.rank import run
from wals_spark.wals.engine.task import RankTask


@pytest.mark.parametrize("preset", ["explicit", "implicit", "ppmi", "sppmi"])
def test_rows_are_the_constrained_minima(make_task: Callable[..., RankTask], preset: str) -> None:
    counts = np.random.default_rng(0).poisson(0.7, (30, 20))
    counts[4] = 0
    task = make_task(counts, preset, precision="float64", k=5, sweeps=3, start="positive", nonnegative=True)
    losses = run(task, LocalGroup())["losses"]
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in itertools.pairwise(losses))
    state = checkpoint.load(task.checkpoints, task.facts)
    assert state is not None
    u, v = state.factors["row"], state.factors["col"]
    problem = oracle.dense_problem(task.objective, counts)
    assert losses[-1] == pytest.approx(oracle.loss(problem, u, v, np.zeros(30), np.zeros(20)), rel=1e-9)
    # The columns were solved last: each is scipy's solution of its weighted rows.
    for j in np.flatnonzero(counts.any(0)):
        root = np.sqrt(problem.weight[:, j])
        rows = np.vstack([root[:, None] * u, np.sqrt(problem.col_lambda[j]) * np.eye(5)])
        expected, _ = nnls(rows, np.append(root * problem.target[:, j], np.zeros(5)))
        assert np.allclose(v[j], expected, atol=1e-6 * max(1.0, expected.max()))


def test_biases_are_refused(make_task: Callable[..., RankTask]) -> None:
    with pytest.raises(ConfigError, match="with bias free cannot be solved without negative factors"):
        make_task(np.eye(3), objective=replace(PRESETS["explicit"], bias="free"), nonnegative=True)
