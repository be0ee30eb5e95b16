"""Losing a rank in the middle of a training."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wals_spark.cluster.preflight import BarrierPlan
from wals_spark.cluster.process_group import LocalGroup
from wals_spark.config import TrainConfig
from wals_spark.errors import TransientError, WalsSparkError
from wals_spark.objective import PRESETS
from wals_spark.wals.engine.driver import train
from wals_spark.wals.engine.rank import run
from wals_spark.wals.engine.task import RankTask

pytestmark = pytest.mark.spark


@pytest.fixture
def task(tmp_path: Path) -> RankTask:
    counts = np.random.default_rng(0).poisson(0.5, (80, 60))
    rows, cols = np.nonzero(counts)
    columns = {"row_id": rows.astype(np.int32), "col_id": cols.astype(np.int32), "units": counts[rows, cols]}
    pq.write_table(pa.table(columns), tmp_path / "matrix.parquet")
    return RankTask(
        files=(str(tmp_path / "matrix.parquet"),),
        shape=counts.shape,
        symmetric=False,
        unit=1,
        objective=PRESETS["ppmi"],
        config=TrainConfig(k=6, sweeps=60, tolerance=0.0, timeout_s=60),
        seed=1,
        directory=str(tmp_path / "killed"),
        facts={"fingerprint": "f"},
    )


def kill_at(task: RankTask, half: int, rank: int, times: int = 1) -> threading.Thread:
    """Kill -9 a rank, each time that `half` further half-sweeps are done."""

    def body() -> None:
        for turn in range(1, times + 1):
            records = Path(task.directory, "attempts", f"{turn:03d}", f"started-{rank:05d}.json")
            first = None
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline:
                time.sleep(0.005)
                if not records.exists() or not Path(task.status_path).exists():
                    continue
                done = json.loads(Path(task.status_path).read_text())["half_sweep"]
                first = done if first is None else first
                if done >= half * turn:
                    os.kill(json.loads(records.read_text())["pid"], signal.SIGKILL)
                    break

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    return thread


def result_of(task: RankTask, side: str) -> np.ndarray:
    parts = [pq.read_table(path) for path in sorted(Path(task.result).glob(f"{side}-*.parquet"))]
    return np.array(pa.concat_tables(parts).sort_by("token_id")["vector"].to_pylist())


def test_a_killed_rank_is_replaced_and_the_result_is_the_same(spark: Any, task: RankTask) -> None:
    whole = replace(task, directory=task.directory + "-whole")
    expected = run(whole, LocalGroup())
    killer = kill_at(task, 40, rank=1)
    result = train(spark, task, BarrierPlan(2, "cpu"))
    killer.join()
    assert Path(task.directory, "attempts", "002").exists()
    assert result["resumed_at"] >= 39
    assert result["losses"] == pytest.approx(expected["losses"], rel=1e-9)
    for side in ("row", "col"):
        assert np.abs(result_of(task, side) - result_of(whole, side)).max() < 1e-5


def test_attempts_are_bounded_and_the_error_says_who_vanished(spark: Any, task: RankTask) -> None:
    kill_at(task, 10, rank=1)
    with pytest.raises(TransientError, match=r"1 attempts.*rank 1 \(host \S+, pid \d+\) of 2 ended without a trace"):
        train(spark, replace(task, config=task.config.model_copy(update={"max_attempts": 1})), BarrierPlan(2, "cpu"))


def test_a_bug_in_a_rank_is_not_retried_and_carries_its_traceback(spark: Any, task: RankTask) -> None:
    broken = replace(task, seed="not a number")
    with pytest.raises(WalsSparkError, match=r"(?s)rank \d of 2 on \S+ failed: .*Traceback") as caught:
        train(spark, broken, BarrierPlan(2, "cpu"))
    assert "build_sides" in str(caught.value) or "run(task, group)" in str(caught.value)
    assert not Path(task.directory, "attempts", "002").exists()
