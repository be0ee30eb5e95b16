"""kill -9 on the commands that count and fold, at their steps on disk.

What a reader finds meanwhile is the old table or the new one, and the same command again ends with the
table of a run that nobody disturbed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import yaml

from wals_spark import schemas, storage
from wals_spark.cooccurrence import batches
from wals_spark.cooccurrence.stages import CooccurrenceStage
from wals_spark.errors import InputError
from wals_spark.stage import run_stage

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(600)]

SIZE = 1500
BLOCKS = 8
SPARK_CONF = {"spark.master": "local[2]", "spark.driver.memory": "1g", "spark.ui.enabled": "false"}
DELTA = pytest.mark.delta
STAGED = "cooccurrence/_staging/*/row_block=*"
PUBLISHED = "cooccurrence/batch_id=*/_commit.json"
DELTA_FILES = "cooccurrence/batch_id=*/row_block=*/*.parquet"
DELTA_COMMIT = "cooccurrence/_delta_log/0*.json"
STEPS = [
    ("parquet", STAGED),
    ("parquet", PUBLISHED),
    pytest.param("delta", DELTA_FILES, marks=DELTA),
    pytest.param("delta", DELTA_COMMIT, marks=DELTA),
]
FOLDING_STEPS = [("parquet", PUBLISHED), pytest.param("delta", DELTA_COMMIT, marks=DELTA)]


SEEDS = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9], np.uint64)


def documents_of(seed):
    rng = np.random.default_rng(seed)
    return [rng.integers(-1, SIZE, 2000).tolist() for _ in range(60)]


def digest(context, *names):
    """Of the summed cells of batches, as they are found in the files now: sum of units h(row, col), for two hashes h.

    Linear in the counts, so batches need no folding, and quick, so that a reader takes no time from what it watches.
    """
    total = np.zeros(2, np.uint64)
    for name in names:
        for data_file in context.tables.files(schemas.COOCCURRENCE, {"batch_id": name}):
            table = data_file.read(["row_id", "col_id", "units"])
            row, col, units = (table[column].to_numpy().astype(np.uint64) for column in table.column_names)
            for place, seed in enumerate(SEEDS):
                mixed = (row << np.uint64(32) | col) * seed
                mixed = (mixed ^ mixed >> np.uint64(29)) * seed
                total[place : place + 1] += ((mixed ^ mixed >> np.uint64(32)) * units).sum(keepdims=True)
    return tuple(total.tolist())


@pytest.fixture
def warehouse(make_context, encode, tmp_path):
    """Batches in a warehouse of their own: (context of the batch, encode its documents anew)."""

    def make(name, batch_id, table_format):
        context = make_context(
            warehouse=str(tmp_path / name),
            table_format=table_format,
            corpus__batch_id=batch_id,
            cooccurrence__blocks=BLOCKS,
        )
        return context, lambda seed: encode(context, documents_of(seed), SIZE)

    return make


@pytest.fixture
def command(tmp_path):
    """Starts `wals-spark` as a process group of its own."""
    started = []

    def start(context, *arguments):
        path = tmp_path / "config.yaml"
        spark = {"conf": SPARK_CONF, "delta_jars": os.environ.get("WALS_SPARK_DELTA_JARS")}
        settings = {
            "warehouse": context.config.warehouse,
            "table_format": context.config.table_format,
            "spark": spark,
            "cooccurrence": {"blocks": BLOCKS},
        }
        path.write_text(yaml.safe_dump(settings))
        line = [sys.executable, "-m", "wals_spark.cli", *arguments, "--config", str(path)]
        with (tmp_path / "log").open("wb") as log:
            started.append(subprocess.Popen(line, start_new_session=True, stderr=log))
        return started[-1]

    yield start
    for process in started:
        with suppress(ProcessLookupError):  # what outlived the driver
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def found_files(context, pattern):
    """Files by name and inode: one that is replaced is a new one."""
    found = set()
    for path in Path(context.config.warehouse).glob(pattern):
        with suppress(FileNotFoundError):  # moved on in the meantime
            found.add((path, path.stat().st_ino))
    return found


def kill_at(process, context, pattern, *, driver_only=False):
    """Kill -9 as soon as the warehouse has a new file that matches."""
    known = found_files(context, pattern)
    while process.poll() is None and found_files(context, pattern) <= known:
        time.sleep(0.0005)
    if driver_only:
        process.kill()
    elif process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


class Reader(threading.Thread):
    """Reads the table again and again; `seen` has the digests of what it found."""

    def __init__(self, context):
        super().__init__(daemon=True)
        self.context = context
        self.seen = set()
        self.stopped = threading.Event()

    def run(self):
        while not self.stopped.wait(0.1):
            try:
                self.seen.add(digest(self.context, self.context.config.corpus.batch_id))
            except (InputError, FileNotFoundError):
                continue  # replaced while it was being read: said so, and read again


@pytest.mark.parametrize(("table_format", "step"), STEPS)
def test_counting_that_is_killed_ends_with_the_same_table(warehouse, command, table_format, step):
    undisturbed, encode = warehouse("undisturbed", "b", table_format)
    encode(2)
    run_stage(undisturbed, CooccurrenceStage())
    new = digest(undisturbed, "b")
    context, encode = warehouse("killed", "b", table_format)
    encode(1)
    run_stage(context, CooccurrenceStage())
    old = digest(context, "b")
    encode(2)
    reader = Reader(context)
    reader.start()
    kill_at(command(context, "cooccurrence", "--batch-id", "b", "--force"), context, step)
    time.sleep(0.1)
    reader.stopped.set()
    reader.join()
    assert reader.seen
    assert reader.seen <= {old, new}
    assert digest(context, "b") in {old, new}
    assert not context.manifests.find("cooccurrence", "b").complete
    manifest, _ = run_stage(context, CooccurrenceStage())
    assert digest(context, "b") == new
    assert manifest.complete
    assert not storage.list_files(storage.join(context.config.warehouse, "_scratch"))


def test_tasks_that_outlive_their_driver_do_no_harm(warehouse, command):
    """The driver alone is killed: for a while its JVM and workers go on writing."""
    context, encode = warehouse("killed", "b", "parquet")
    encode(2)
    kill_at(command(context, "cooccurrence", "--batch-id", "b"), context, STAGED, driver_only=True)
    run_stage(context, CooccurrenceStage())
    undisturbed, encode = warehouse("undisturbed", "b", "parquet")
    encode(2)
    run_stage(undisturbed, CooccurrenceStage())
    assert digest(context, "b") == digest(undisturbed, "b")


@pytest.mark.parametrize(("table_format", "step"), FOLDING_STEPS)
def test_folding_that_is_killed_ends_with_the_exact_sum(warehouse, command, table_format, step):
    for seed, name in enumerate("abc"):
        context, encode = warehouse("killed", name, table_format)
        encode(seed)
        run_stage(context, CooccurrenceStage())
    total = digest(context, "a", "b", "c")
    kill_at(command(context, "compact", "--into", "b", "--batches", "a,b,c"), context, step)
    assert digest(context, *context.tables.values(schemas.COOCCURRENCE)) == total
    assert not context.manifests.find("cooccurrence", "b").complete
    batches.compact(context, "b", ["a", "b", "c"])
    assert context.tables.values(schemas.COOCCURRENCE) == ["b"]
    assert context.tables.values(schemas.MARGINALS) == ["b"]
    assert context.manifests.keys("cooccurrence") == ["b"]
    assert digest(context, "b") == total
