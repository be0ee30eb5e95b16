"""Ranks on executors of their own: GPU scheduling with a fake GPU, and the loss of an executor."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.cluster

PROGRAM = """
import json, os, signal, sys, threading, time
from dataclasses import replace
from pathlib import Path
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from pyspark.sql import SparkSession
from wals_spark.cluster.barrier import run_barrier
from wals_spark.cluster.process_group import LocalGroup
from wals_spark.cluster.preflight import BarrierPlan, preflight
from wals_spark.config import TrainConfig
from wals_spark.matrix.placement import one_row_per_rank
from wals_spark.objective import PRESETS
from wals_spark.wals.engine.driver import train
from wals_spark.wals.engine.task import RankTask
from wals_spark.wals.engine.rank import run

root = Path(sys.argv[1])
script = root / "gpus.sh"
script.write_text('#!/bin/sh\\necho \\'{"name": "gpu", "addresses": ["3"]}\\'\\n')
script.chmod(0o755)
builder = SparkSession.builder.master("local-cluster[2,2,1024]")
for key, value in {
    "spark.ui.enabled": "false",
    "spark.executor.memory": "1g",
    "spark.executor.cores": "2",
    "spark.executor.resource.gpu.amount": "1",
    "spark.executor.resource.gpu.discoveryScript": str(script),
    "spark.worker.resource.gpu.amount": "1",
    "spark.worker.resource.gpu.discoveryScript": str(script),
    "spark.barrier.sync.timeout": "120",
}.items():
    builder = builder.config(key, value)
spark = builder.getOrCreate()
spark.sparkContext.setLogLevel("OFF")
found = {}

plan = preflight(spark, workers=None, device="auto")
found["ranks"], found["device"] = plan.ranks, plan.device
records = str(root / "records")
os.makedirs(records)
texts = run_barrier(
    one_row_per_rank(spark, plan.ranks),
    plan,
    lambda context, payload: json.dumps([context.rank, context.cpus, list(context.gpus), payload]),
    "hello",
    records,
)
found["texts"] = [json.loads(text) for text in texts]

counts = np.random.default_rng(0).poisson(0.5, (80, 60))
rows, cols = np.nonzero(counts)
columns = {"row_id": rows.astype(np.int32), "col_id": cols.astype(np.int32), "units": counts[rows, cols]}
pq.write_table(pa.table(columns), root / "matrix.parquet")
task = RankTask(
    files=(str(root / "matrix.parquet"),), shape=counts.shape, symmetric=False, unit=1, objective=PRESETS["ppmi"],
    config=TrainConfig(k=6, sweeps=60, tolerance=0.0, timeout_s=60), seed=1,
    directory=str(root / "killed"), facts={"fingerprint": "f"},
)

def parent(pid):
    return int(next(l for l in open(f"/proc/{pid}/status") if l.startswith("PPid")).split()[1])

def kill_executor():
    started, status = Path(task.directory, "attempts/001/started-00001.json"), Path(task.status_path)
    while not (started.exists() and status.exists() and json.loads(status.read_text())["half_sweep"] >= 20):
        time.sleep(0.01)
    pid = json.loads(started.read_text())["pid"]
    while "java" not in open(f"/proc/{pid}/comm").read():
        pid = parent(pid)
    os.kill(pid, signal.SIGKILL)

threading.Thread(target=kill_executor, daemon=True).start()
result = train(spark, task, BarrierPlan(2, "cpu"))
whole = replace(task, directory=str(root / "whole"))
expected = run(whole, LocalGroup())
found["resumed_at"] = result["resumed_at"]
found["attempts"] = len(list(Path(task.directory, "attempts").iterdir()))
found["difference"] = max(abs(a - b) / b for a, b in zip(result["losses"], expected["losses"], strict=True))
spark.stop()
print("FOUND " + json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict:
    root = tmp_path_factory.mktemp("cluster")
    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(root)],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=root,
        env=environment,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, done.stderr[-3000:]
    return json.loads(lines[0].removeprefix("FOUND "))


def test_each_rank_gets_an_executor_and_its_gpu(found: dict) -> None:
    assert (found["ranks"], found["device"]) == (2, "cuda")
    assert found["texts"] == [[0, 2, ["3"], "hello"], [1, 2, ["3"], "hello"]]


def test_a_lost_executor_is_survived_and_the_result_is_the_same(found: dict) -> None:
    assert found["attempts"] >= 2
    assert found["resumed_at"] >= 19
    assert found["difference"] < 1e-9
