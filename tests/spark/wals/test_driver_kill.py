"""kill -9 on the driver of a training, twice: the same command goes on and ends with the same factors."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from wals_spark import schemas
from wals_spark.factors.store import read_side
from wals_spark.runs import Manifest
from wals_spark.stage import run_stage
from wals_spark.tokenizer import vocabulary_hash
from wals_spark.wals.stages import TrainStage

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(600)]

SIZE, SWEEPS = 60, 20
TOKENS = [f"t{i}" for i in range(SIZE)]
TRAINING = {"k": 6, "sweeps": SWEEPS, "tolerance": 0.0, "workers": 2}
SPARK_CONF = {"spark.master": "local[2]", "spark.driver.memory": "1g", "spark.ui.enabled": "false"}


@pytest.fixture
def context(make_context: Callable[..., Any]) -> Any:
    """A warehouse with counts and their vocabulary, and a training of it that nobody disturbs."""
    context = make_context(run_id="whole", **{f"train__{name}": value for name, value in TRAINING.items()})
    counts = np.random.default_rng(0).poisson(0.6, (SIZE, SIZE))
    rows, cols = np.nonzero(counts + counts.T)
    units = (counts + counts.T)[rows, cols].astype(np.int64)
    with context.tables.staged_slice(schemas.COOCCURRENCE, {"batch_id": "default"}) as staging:
        Path(staging, "row_block=0").mkdir(parents=True)
        cells = {"row_id": rows.astype(np.int32), "col_id": cols.astype(np.int32), "units": units}
        pq.write_table(pa.table(cells), f"{staging}/row_block=0/part-00000.parquet")
    facts = {"unit": 1, "symmetric": True, "vocabulary_size": SIZE, "vocabulary_hash": vocabulary_hash(TOKENS)}
    outputs = {**facts, "semantics": {"window": 10}}
    context.manifests.write(Manifest("cooccurrence", "default", "complete", "print", "r", outputs=outputs))
    columns = {
        "token_id": pa.array(range(SIZE), pa.int32()),
        "token": TOKENS,
        "count": pa.array(range(SIZE, 0, -1), pa.int64()),
        "document_count": pa.array([1] * SIZE, pa.int64()),
        "is_special": [False] * SIZE,
    }
    context.tables.replace_rows(schemas.VOCABULARY, pa.table(columns), {})
    run_stage(context, TrainStage())
    return context


@pytest.fixture
def train(context: Any, tmp_path: Path) -> Callable[[], subprocess.Popen]:
    """Starts `wals-spark train` of the same training under another run id."""
    path = tmp_path / "config.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "warehouse": context.config.warehouse,
                "run_id": "killed",
                "spark": {"conf": SPARK_CONF},
                "train": TRAINING,
            }
        )
    )
    command = [sys.executable, "-m", "wals_spark.cli", "train", "--config", str(path)]
    return lambda: subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)


def reached(context: Any) -> int:
    for status in Path(context.config.warehouse, "runs", "killed", "train").glob("*/status.json"):
        return int(json.loads(status.read_text())["half_sweep"])
    return 0


def test_a_killed_driver_leaves_a_training_that_goes_on(context: Any, train: Callable[[], subprocess.Popen]) -> None:
    for half in (3, 12):
        driver = train()
        deadline = time.monotonic() + 200
        while reached(context) < half:
            assert driver.poll() is None, driver.communicate()[1][-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        driver.send_signal(signal.SIGKILL)
        driver.communicate()
        assert not context.manifests.keys("train").count("killed")
    stopped_at = reached(context)
    assert 12 <= stopped_at < 2 * SWEEPS
    last = train()
    _, said = last.communicate(timeout=200)
    assert last.returncode == 0, said[-2000:]
    whole, killed = (context.manifests.require("train", run) for run in ("whole", "killed"))
    assert killed.outputs["loss"] == whole.outputs["loss"]
    assert killed.outputs["sweeps"] == SWEEPS
    for side in ("row", "col"):
        expected, found = (read_side(context.tables, run, side) for run in ("whole", "killed"))
        assert np.array_equal(expected.matrix, found.matrix)
