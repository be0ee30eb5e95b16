"""Small matrices as files, and trainings on them in this process or in several."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fresh_process import FreshProcess

from wals_spark.config import TrainConfig
from wals_spark.objective import PRESETS
from wals_spark.wals.engine.task import RankTask

TASK_FIELDS = {each.name for each in fields(RankTask)}
RANK_PROGRAM = """
import os, signal, sys
from wals_spark.cluster.process_group import process_group
from wals_spark.wals.engine.task import RankTask
from wals_spark.wals.engine.rank import run
rank, size, directory = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
task = RankTask.from_json(sys.argv[4])
kill_rank, kill_after = int(sys.argv[5]), int(sys.argv[6])
turn = 0
def all_gather_text(text):
    global turn
    turn += 1
    import time
    mine = os.path.join(directory, f"{turn}-{rank}")
    with open(mine + ".tmp", "w") as stream:
        stream.write(text)
    os.rename(mine + ".tmp", mine)
    paths = [os.path.join(directory, f"{turn}-{other}") for other in range(size)]
    while not all(map(os.path.exists, paths)):
        time.sleep(0.01)
    return [open(path).read() for path in paths]
def after_half(half):
    if rank == kill_rank and half == kill_after:
        os.kill(os.getpid(), signal.SIGKILL)
with process_group(rank, size, all_gather_text, timeout_s=60) as group:
    result = run(task, group, after_half)
if rank == 0:
    import json
    print(json.dumps(result))
"""


@pytest.fixture
def counts() -> np.ndarray:
    """A symmetric count matrix with an empty row, a full row and a row with one cell."""
    rng = np.random.default_rng(0)
    x = rng.poisson(0.4, (70, 70))
    x[5] = rng.integers(1, 30, 70)
    x[:, 5] = 0
    x = np.triu(x, 1)
    x[9] = 0
    x[:, 9] = 0
    x[11] = 0
    x[:, 11] = 0
    x[5, 11] = 3
    return x + x.T


@pytest.fixture
def make_task(tmp_path: Path) -> Callable[..., RankTask]:
    """A training on a dense matrix whose zeros are unobserved; keyword arguments change the task or its settings."""

    def make(matrix: np.ndarray, preset: str = "ppmi", name: str = "run", **changes: Any) -> RankTask:
        of_task = {key: value for key, value in changes.items() if key in TASK_FIELDS}
        settings = {key: value for key, value in changes.items() if key not in TASK_FIELDS}
        path = tmp_path / f"matrix-{name}.parquet"
        rows, cols = np.nonzero(matrix)
        table = pa.table(
            {
                "row_id": rows.astype(np.int32),
                "col_id": cols.astype(np.int32),
                "units": matrix[rows, cols].astype(np.int64),
            }
        )
        pq.write_table(table, path, row_group_size=max(1, len(rows) // 5))
        task = RankTask(
            files=(str(path),),
            shape=matrix.shape,
            symmetric=False,
            unit=1,
            objective=PRESETS[preset],
            config=TrainConfig(**{"k": 6, "sweeps": 4, "tolerance": 0.0, **settings}),
            seed=1,
            directory=str(tmp_path / name),
            facts={"fingerprint": "f"},
        )
        return replace(task, **of_task)

    return make


@pytest.fixture
def run_ranks(tmp_path: Path) -> Callable[..., dict[str, Any] | None]:
    """Run a training on several processes over gloo; None when it failed. ``kill=(rank, half)`` kills -9."""
    turn = iter(range(100))

    def start(task: RankTask, size: int, kill: tuple[int, int] = (-1, -1)) -> dict[str, Any] | None:
        directory = tmp_path / f"rendezvous-{next(turn)}"
        directory.mkdir()
        processes = [
            FreshProcess(RANK_PROGRAM, str(rank), str(size), str(directory), task.to_json(), *map(str, kill))
            for rank in range(size)
        ]
        ends = [process.communicate(timeout=120) for process in processes]
        if kill[0] >= 0:
            assert all(process.returncode != 0 for process in processes)
            return None
        assert all(process.returncode == 0 for process in processes), [error for _, error in ends]
        return json.loads(ends[0][0].splitlines()[-1])

    return start


def read_result(task: RankTask) -> dict[str, np.ndarray]:
    """The final factors of a training, by side."""
    factors = {}
    for side in ("row", "col"):
        parts = [pq.read_table(path) for path in sorted(Path(task.result).glob(f"{side}-*.parquet"))]
        table = pa.concat_tables(parts).sort_by("token_id")
        factors[side] = np.array(table["vector"].to_pylist(), np.float32)
    return factors


@pytest.fixture
def result_of() -> Callable[[RankTask], dict[str, np.ndarray]]:
    return read_result
