"""The memory plan changes memory, not the result."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wals_spark.cluster.process_group import LocalGroup
from wals_spark.matrix.coo import Coo
from wals_spark.objective import PRESETS
from wals_spark.wals.engine import checkpoint
from wals_spark.wals.engine.rank import run
from wals_spark.wals.partition.build import build_sides
from wals_spark.wals.partition.memory_plan import MemoryPlan

GROUP = LocalGroup()
# Blocks of about 40 cells or 9 columns: many of them, and a row that is longer than a block.
STREAMED = MemoryPlan(matrix="streamed", block_cells=40)
SHARDED = MemoryPlan(factors="sharded", fetched_rows=9)
BOTH = replace(STREAMED, factors="sharded", fetched_rows=9)


@pytest.mark.parametrize(("preset", "symmetric"), [("ppmi", True), ("sppmi", True), ("glove", False)])
def test_a_streamed_matrix_gives_the_same_bits(make_task, result_of, counts, preset, symmetric) -> None:
    resident = make_task(counts, preset, name="resident", symmetric=symmetric)
    expected = run(resident, GROUP)
    streamed = make_task(counts, preset, name="streamed", symmetric=symmetric, memory_plan=STREAMED)
    assert run(streamed, GROUP)["losses"] == expected["losses"]
    for side in ("row", "col"):
        assert result_of(streamed)[side].tobytes() == result_of(resident)[side].tobytes()


@pytest.mark.parametrize("plan", [SHARDED, BOTH], ids=["resident", "streamed"])
def test_sharded_factors_are_the_replicated_ones(make_task, result_of, counts, plan) -> None:
    one = make_task(counts[:, :50], "glove", name="replicated", precision="float64")
    expected = run(one, GROUP)
    task = make_task(counts[:, :50], "glove", name="sharded", precision="float64", memory_plan=plan)
    assert run(task, GROUP)["losses"] == pytest.approx(expected["losses"], rel=1e-12)
    for side in ("row", "col"):
        assert np.abs(result_of(task)[side] - result_of(one)[side]).max() < 1e-6


@pytest.mark.parametrize(("ranks", "plan"), [(2, SHARDED), (3, BOTH)], ids=["two", "three, streamed"])
def test_ranks_that_hold_only_their_own_rows_find_the_same_factors(
    make_task, result_of, run_ranks, counts, ranks, plan
) -> None:
    one = make_task(counts[:, :50], name="one", precision="float64")
    expected = run(one, GROUP)
    many = make_task(counts[:, :50], name="many", precision="float64", memory_plan=plan)
    assert run_ranks(many, ranks)["losses"] == pytest.approx(expected["losses"], rel=1e-12)
    for side in ("row", "col"):
        assert np.abs(result_of(one)[side] - result_of(many)[side]).max() < 1e-6


def test_a_training_of_sharded_ranks_resumes_on_one_that_holds_everything(
    make_task, result_of, run_ranks, counts
) -> None:
    whole = make_task(counts, name="whole", precision="float64")
    run(whole, GROUP)
    killed = make_task(counts, name="killed", precision="float64", memory_plan=SHARDED)
    run_ranks(killed, 2, kill=(1, 3))
    result = run(replace(killed, memory_plan=None), GROUP)
    assert result["resumed_at"] in (3, 4)
    assert np.abs(result_of(killed)["row"] - result_of(whole)["row"]).max() < 1e-6


def test_every_cell_is_in_one_block_and_a_block_fetches_each_column_once(counts) -> None:
    rows, cols = np.nonzero(counts)
    cells = Coo(rows.astype(np.int32), cols.astype(np.int32), counts[rows, cols].astype(np.int64))
    make = {"symmetric": True, "unit": 1, "k": 6, "dtype": np.dtype("float32")}
    whole, _ = build_sides(GROUP, cells, counts.shape, PRESETS["ppmi"], **make)
    side, _ = build_sides(GROUP, lambda: iter([cells]), counts.shape, PRESETS["ppmi"], plan=BOTH, **make)
    blocks = list(side.blocks)
    (whole_block,) = whole.blocks
    assert len(blocks) > 10
    assert [block.start for block in blocks] == np.cumsum([0, *(len(block.rows) for block in blocks[:-1])]).tolist()
    named = np.concatenate([block.halo.ghost_ids[block.rows.indices] for block in blocks])
    assert np.array_equal(named, whole_block.rows.indices)
    assert np.array_equal(np.concatenate([block.rows.weight for block in blocks]), whole_block.rows.weight)
    for block in blocks:
        assert len(np.unique(block.halo.ghost_ids)) == len(block.halo.ghost_ids)
        assert len(block.halo.ghost_ids) <= 9 or len(block.rows) == 1
        assert len(block.rows.indices) <= 40 or len(block.rows) == 1


def test_shards_of_a_few_rows_are_read_back_whole(make_task, result_of, counts, monkeypatch) -> None:
    whole = make_task(counts, name="whole")
    run(whole, GROUP)
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 7 * 6 * 4)
    small = make_task(counts, name="small")
    run(small, GROUP)
    assert len(list(Path(small.checkpoints, "half-00008").glob("col-*"))) == 10
    assert len(list(Path(small.result).glob("row-*"))) == 10
    assert result_of(small)["row"].tobytes() == result_of(whole)["row"].tobytes()
    kept = {"row": np.array([3, 8, 69]), "col": np.arange(70)}
    some, everything = (checkpoint.load(small.checkpoints, small.facts, ids) for ids in (kept, None))
    assert np.array_equal(some.factors["row"], everything.factors["row"][[3, 8, 69]])


MEMORY_PROGRAM = """
import gc, json, sys
from dataclasses import replace
from wals_spark.cluster.process_group import LocalGroup
from wals_spark.matrix import coo
from wals_spark.wals.partition import build
from wals_spark.wals.partition.memory_plan import MemoryPlan
from wals_spark.wals.engine.task import RankTask
from wals_spark.wals.engine.rank import run
coo.BATCH_ENTRIES = build.BATCH_CELLS = 1 << 16
small, large = map(RankTask.from_json, sys.argv[1:3])

def resident_bytes(name):
    with open("/proc/self/status") as stream:
        return 1024 * int(next(line for line in stream if line.startswith(name)).split()[1])

def peak(task, plan):
    gc.collect()
    with open("/proc/self/clear_refs", "w") as stream:
        stream.write("5")  # the peak starts again from here
    before = resident_bytes("VmRSS")
    run(replace(task, directory=task.directory + plan.matrix, memory_plan=plan), LocalGroup())
    return resident_bytes("VmHWM") - before

streamed, resident = MemoryPlan(matrix="streamed", block_cells=1 << 16), MemoryPlan()
for plan in (streamed, resident):
    peak(small, plan)
print(json.dumps([peak(large, streamed), peak(large, resident)]))
"""


@pytest.mark.slow
def test_streaming_bounds_the_memory(make_task) -> None:
    rng = np.random.default_rng(0)
    large = make_task((rng.random((6000, 1000)) < 0.7).astype(np.int64), "implicit", name="large", k=4, sweeps=1)
    small = make_task(np.eye(9, dtype=np.int64), "implicit", name="small", k=4, sweeps=1)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_PROGRAM, small.to_json(), large.to_json()],
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
    )
    streamed, resident = json.loads(done.stdout.splitlines()[-1])
    # 4.2 M cells are 100 MB when built and three times that while they are read; a block of 65,536 is 1 MB, and
    # what does not grow with the matrix (readers' buffers, allocator) was seen between 28 and 35 MB.
    assert streamed < 50e6
    assert resident > 180e6
