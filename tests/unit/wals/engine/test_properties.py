"""Whole trainings on random small matrices: every half-sweep against the dense float64 solution and loss.

The optimum of a half-step is unique wherever there is some regularisation, so an exact solver is compared by its value:
the true loss of what it solved may exceed the minimum only by rounding, and must be the loss that it reported.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import wals as oracle
from thread_ranks import run_threads

from wals_spark.objective import PRESETS, Objective
from wals_spark.wals.engine import checkpoint
from wals_spark.wals.engine.rank import run
from wals_spark.wals.partition.memory_plan import MemoryPlan

EXAMPLES = int(os.environ.get("WALS_SPARK_EXAMPLES", "150"))
TOLERANCE = {"float32": 3e-5, "float64": 1e-10}
"""Of the magnitude of the terms that cancel in a loss."""
QUADRATIC = [name for name, objective in PRESETS.items() if objective.is_quadratic and name != "custom"]
FACTORS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 48, 63, 64, 65, 70, 96, 100)
"""Around cache lines of both precisions, and where the Woodbury form begins."""


@dataclass(frozen=True)
class Case:
    """A training to be checked."""

    counts: np.ndarray
    symmetric: bool
    objective: Objective
    k: int
    sweeps: int
    solver: str
    precision: str
    ranks: int
    memory: MemoryPlan
    seed: int


@st.composite
def matrices(draw: st.DrawFn) -> tuple[np.ndarray, bool]:
    """Counts with empty, single-cell, short and full rows; symmetric or not."""
    rows, cols = draw(st.integers(1, 30)), draw(st.integers(1, 30))
    symmetric = draw(st.booleans())
    cols = rows if symmetric else cols
    kind = draw(st.sampled_from(["mixed", "short", "full"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lengths = {
        "mixed": lambda: rng.choice([0, 1, min(3, cols), cols]),
        "short": lambda: min(cols, 1 + rng.integers(3)),
        "full": lambda: cols,
    }
    counts = np.zeros((rows, cols), np.int64)
    for row in counts:
        chosen = rng.choice(cols, int(lengths[kind]()), replace=False)
        row[chosen] = rng.integers(1, 30, len(chosen))
    if symmetric:
        counts = np.triu(counts) + np.triu(counts, 1).T
    if not counts.any():
        counts[0, 0] = 1
    return counts, symmetric


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Everything that a training may be asked for, on a small matrix."""
    counts, symmetric = draw(matrices())
    preset = draw(st.sampled_from(QUADRATIC))
    objective = replace(PRESETS[preset], regularization=draw(st.sampled_from([0.01, 0.3, 20.0])))
    if draw(st.booleans()) and objective.target in ("log", "value"):
        objective = replace(objective, bias=draw(st.sampled_from(["none", "free", "fixed"])))
    return Case(
        counts,
        symmetric and objective.symmetric,
        objective,
        draw(st.sampled_from(FACTORS)),
        draw(st.integers(1, 3)),
        draw(st.sampled_from(["auto", "auto", "exact", "cg", "block"])),
        draw(st.sampled_from(["float32", "float64"])),
        draw(st.integers(1, 3)),
        MemoryPlan(
            draw(st.sampled_from(["replicated", "sharded"])),
            draw(st.sampled_from(["resident", "streamed"])),
            block_cells=draw(st.sampled_from([1, 16, 1 << 20])),
        ),
        draw(st.integers(0, 2**31)),
    )


def magnitude(problem: oracle.DenseProblem, u: np.ndarray, v: np.ndarray, b: np.ndarray, c: np.ndarray) -> float:
    """The size of the terms whose differences make the loss: what rounding is relative to."""
    s = np.abs(u) @ np.abs(v).T + np.abs(b)[:, None] + np.abs(c)[None, :]
    ridge = problem.row_lambda @ (u * u).sum(1) + problem.col_lambda @ (v * v).sum(1)
    return float((problem.weight * (np.abs(problem.target) + s) ** 2).sum() + ridge)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="WALS_SPARK_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(case=cases())
def test_every_half_sweep_is_that_of_the_dense_problem(make_task: Callable[..., Any], case: Case) -> None:
    number = next(NUMBERS)
    problem = oracle.dense_problem(case.objective, case.counts)
    task = make_task(
        case.counts, name=f"case-{number}", objective=case.objective, symmetric=case.symmetric, k=case.k,
        sweeps=case.sweeps, solver=case.solver, precision=case.precision, seed=case.seed, block_size=5, cg_steps=3,
        memory_plan=case.memory, checkpoint_every=1,
    )  # fmt: skip
    seen: list[dict[str, np.ndarray]] = []

    def keep(rank: int) -> Callable[[int], None]:
        def after_half(half: int) -> None:
            if rank == 0:
                state = checkpoint.load(task.checkpoints, task.facts)
                assert state is not None
                seen.append({side: x.astype(np.float64) for side, x in state.factors.items()})

        return after_half

    results = run_threads(case.ranks, lambda group: run(task, group, keep(group.rank)))
    losses = results[0]["losses"]
    assert [result["losses"] for result in results] == [losses] * case.ranks
    assert len(seen) == len(losses) == 2 * case.sweeps
    for half, (loss, factors) in enumerate(zip(losses, seen, strict=True)):
        u, v = (factors[side][:, : case.k] for side in ("row", "col"))
        b, c = (factors[side][:, case.k] if problem.bias else np.zeros(len(factors[side])) for side in ("row", "col"))
        size = magnitude(problem, u, v, b, c)
        allowed = TOLERANCE[case.precision] * size + 1e-12
        assert loss == pytest.approx(oracle.loss(problem, u, v, b, c), abs=allowed), f"loss of half-sweep {half}"
        if case.solver in ("auto", "exact"):
            if half % 2 == 0:
                best = (*oracle.half_step(problem, v, c), v, c)
                lowest = oracle.loss(problem, best[0], v, best[1], c)
            else:
                best = (*oracle.half_step(problem.transposed, u, b), u, b)
                lowest = oracle.loss(problem, u, best[0], b, best[1])
            assert loss - lowest <= allowed, f"half-sweep {half} is not at its minimum"
        if half:
            assert loss <= losses[half - 1] + allowed, f"the loss rose in half-sweep {half}"


NUMBERS = itertools.count()
