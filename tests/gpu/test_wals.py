"""The engine on a GPU: solvers, trainings and messages; needs neither Spark nor pydantic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("torch finds no GPU", allow_module_level=True)

from oracles import wals as oracle  # noqa: E402

from wals_spark.cluster.process_group import LocalGroup, TorchGroup  # noqa: E402  # after the skip
from wals_spark.config import TrainConfig  # noqa: E402
from wals_spark.errors import InputError  # noqa: E402
from wals_spark.matrix.coo import Coo  # noqa: E402
from wals_spark.objective import PRESETS, Objective  # noqa: E402
from wals_spark.wals.engine.factors import FactorLayout  # noqa: E402
from wals_spark.wals.engine.rank import run  # noqa: E402
from wals_spark.wals.engine.task import RankTask  # noqa: E402
from wals_spark.wals.partition.build import build_sides  # noqa: E402
from wals_spark.wals.partition.memory_plan import MemoryPlan  # noqa: E402
from wals_spark.wals.solvers.cpu import Solver  # noqa: E402
from wals_spark.wals.solvers.gpu.cuda_solver import CudaSolver  # noqa: E402
from wals_spark.wals.solvers.gpu.torch_solver import TorchSolver  # noqa: E402
from wals_spark.wals.solvers.system import FixedFactors, System  # noqa: E402

pytestmark = pytest.mark.gpu

GROUP = LocalGroup()
SOLVERS = {
    "kernels": lambda: CudaSolver("cuda"),
    "torch": lambda: TorchSolver("cuda"),
    "torch, small batches": lambda: TorchSolver("cuda", bytes_at_once=1 << 16, longest=13),
}


@pytest.fixture
def counts() -> np.ndarray:
    """With an empty row, a full row, a row of one cell, and a heavy tail."""
    rng = np.random.default_rng(0)
    x = rng.poisson(0.3 * rng.pareto(1.5, (300, 1)), (300, 200))
    x[5] = rng.integers(1, 30, 200)
    x[9] = 0
    x[11] = 0
    x[11, 3] = 4
    return x


def half_step(solver: Solver, counts: np.ndarray, objective: Objective, k: int) -> tuple[np.ndarray, ...]:
    """Rows solved on the device and by the dense float64 reference, and both losses."""
    rows, cols = np.nonzero(counts)
    cells = Coo(rows.astype(np.int32), cols.astype(np.int32), counts[rows, cols].astype(np.int64))
    row, col = build_sides(
        GROUP, cells, counts.shape, objective, symmetric=False, unit=1, k=k, dtype=np.dtype("float32")
    )
    layout = FactorLayout(k, objective.bias)
    x = np.random.default_rng(1).standard_normal((col.size, layout.width)).astype(np.float32)
    x[col.cell_counts == 0] = 0
    z = layout.features(x)
    own = np.zeros((len(row.ids), layout.width), np.float32)
    gramian = (z.T.astype(np.float64) * col.popularity) @ z
    system = System(
        FixedFactors(z, col.popularity, gramian, objective.rho),
        layout.known(own),
        layout.ridge(row.ridge[row.ids]),
    )
    solved, losses = solver.solve(next(iter(row.blocks)).rows, system)
    problem = oracle.dense_problem(objective, counts)
    v = x[:, :k].astype(np.float64)
    c = x[:, k].astype(np.float64) if objective.bias == "free" else np.zeros(col.size)
    u, b = oracle.half_step(problem, v, c)
    expected = oracle.loss(problem, u, v, b, c) - problem.col_lambda @ (v * v).sum(1)
    return solved[:, :k], u, losses.sum(), expected


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("preset", ["ppmi", "implicit", "glove", "explicit"])
@pytest.mark.parametrize("k", [1, 6, 64, 200])
def test_a_half_step_solves_the_reference_problem(counts: np.ndarray, solver: str, preset: str, k: int) -> None:
    found, expected, loss, exact_loss = half_step(SOLVERS[solver](), counts, PRESETS[preset], k)
    assert np.abs(found - expected).max() < 5e-3 * np.abs(expected).max()
    # With as many factors as columns hardly any loss is left of the terms that cancel in it.
    assert loss == pytest.approx(exact_loss, rel=1e-4 if k < 200 else 1e-3)


@pytest.mark.parametrize("solver", ["kernels", "torch"])
def test_a_row_without_a_unique_solution_is_named(solver: str) -> None:
    counts = np.zeros((8, 8), np.int64)
    counts[2, 3] = counts[3, 3] = 4
    with pytest.raises(InputError, match=r"2 rows have no unique solution \(ids 2, 3\)"):
        half_step(SOLVERS[solver](), counts, replace(PRESETS["glove"], bias="none", regularization=1e-300), 6)


@pytest.fixture
def task(counts: np.ndarray, tmp_path: Path) -> RankTask:
    rows, cols = np.nonzero(counts)
    columns = {"row_id": rows.astype(np.int32), "col_id": cols.astype(np.int32), "units": counts[rows, cols]}
    pq.write_table(pa.table(columns), tmp_path / "matrix.parquet")
    return RankTask(
        files=(str(tmp_path / "matrix.parquet"),),
        shape=counts.shape,
        symmetric=False,
        unit=1,
        objective=PRESETS["ppmi"],
        config=TrainConfig(k=32, sweeps=5, tolerance=0.0),
        seed=1,
        directory=str(tmp_path / "training"),
        device="cuda",
    )


PLANS = {
    "resident": MemoryPlan("replicated", "resident"),
    "streamed": MemoryPlan("replicated", "streamed", block_cells=500),
    "sharded": MemoryPlan("sharded", "resident", fetched_rows=50),
    "sharded, streamed": MemoryPlan("sharded", "streamed", block_cells=500, fetched_rows=50),
}


@pytest.mark.parametrize("plan", PLANS)
def test_a_training_has_the_losses_of_one_on_the_processor(task: RankTask, plan: str, tmp_path: Path) -> None:
    exact = replace(task, config=task.config.model_copy(update={"precision": "float64"}))
    expected = run(replace(exact, device="cpu", directory=str(tmp_path / "cpu")), GROUP)
    found = run(replace(task, memory_plan=PLANS[plan]), GROUP)
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-4)


@pytest.fixture
def nccl(tmp_path: Path) -> Iterator[TorchGroup]:
    """A group of one rank whose messages go over NCCL."""
    import torch.distributed as dist

    dist.init_process_group("cpu:gloo,cuda:nccl", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield TorchGroup(0, 1, "cuda:0")
    dist.destroy_process_group()


def test_messages_go_through_the_gpu(nccl: TorchGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[str, Any] = {"whole": np.arange(12.0).reshape(4, 3), "none": np.zeros((0, 3), np.float32)}
    for largest in (1 << 28, 7):
        monkeypatch.setattr("wals_spark.cluster.process_group.MAX_MESSAGE_BYTES", largest)
        assert np.array_equal(nccl.all_gather(sent["whole"])[0], sent["whole"])
        for array in sent.values():
            (received,) = nccl.all_to_all([array])
            assert np.array_equal(received, array)
            assert received.shape == array.shape
        assert nccl.all_gather_object("text") == ["text"]


def test_a_training_over_nccl_is_the_same(task: RankTask, nccl: TorchGroup, tmp_path: Path) -> None:
    expected = run(replace(task, directory=str(tmp_path / "alone")), GROUP)
    found = run(replace(task, memory_plan=PLANS["sharded"]), nccl)
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-5)
