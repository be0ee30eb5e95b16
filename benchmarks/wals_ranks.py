"""What more ranks gain, and the estimated memory beside what was used; one JSON line per case.

    python benchmarks/wals_ranks.py --warehouse W --k 128

`ranks`: seconds per half-sweep of one rank and of two, one thread each, over gloo; the first half-sweep is not counted.
Two ranks cannot gain anything unless two cores are idle: `cpu_s` (processor seconds of all ranks per half-sweep) shows
what they would do on such a machine, `best_ratio` being twice the processor time of one rank over that of two.
`memory`: estimated and largest resident set of a rank, for every memory plan: factors replicated or sharded, matrix
resident or streamed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from wals import emit, largest_cells

from wals_spark.cluster.process_group import process_group
from wals_spark.config import TrainConfig
from wals_spark.objective import PRESETS
from wals_spark.wals.engine.memory_estimate import estimate_memory, plan_memory
from wals_spark.wals.engine.rank import run
from wals_spark.wals.engine.task import RankTask
from wals_spark.wals.partition.memory_plan import MemoryPlan

PLANS = [(factors, matrix) for factors in ("replicated", "sharded") for matrix in ("resident", "streamed")]


def one_rank(rank: int, size: int, directory: str, text: str) -> None:
    """Train in this process; writes seconds, processor seconds and result into `directory`."""
    turns = iter(range(10))

    def all_gather_text(mine: str) -> list[str]:
        turn = next(turns)
        path = Path(directory, f"{turn}-{rank}")
        path.with_suffix(".tmp").write_text(mine)
        path.with_suffix(".tmp").rename(path)
        paths = [Path(directory, f"{turn}-{other}") for other in range(size)]
        while not all(path.exists() for path in paths):
            time.sleep(0.01)
        return [path.read_text() for path in paths]

    clock: list[tuple[float, float]] = []

    def after_half(half: int) -> None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        clock.append((time.perf_counter(), usage.ru_utime + usage.ru_stime))

    with process_group(rank, size, all_gather_text, timeout_s=600) as group:
        result = run(RankTask.from_json(text), group, after_half)
    wall, cpu = ((clock[-1][i] - clock[0][i]) / (len(clock) - 1) for i in (0, 1))
    facts = {"wall_s": wall, "cpu_s": cpu, "seconds": result["seconds"], "peak": result["peak_memory_bytes"]}
    Path(directory, f"result-{rank}").write_text(json.dumps(facts))


def train(task: RankTask, size: int) -> list[dict[str, Any]]:
    """Train on `size` ranks; what each of them measured."""
    with tempfile.TemporaryDirectory() as directory:
        text = replace(task, directory=directory).to_json()
        context = multiprocessing.get_context("spawn")
        ranks = [context.Process(target=one_rank, args=(rank, size, directory, text)) for rank in range(size)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        return [json.loads(Path(directory, f"result-{rank}").read_text()) for rank in range(size)]


def against_two_ranks(task: RankTask, cells: int) -> None:
    """The case `ranks`."""
    task = replace(task, memory_plan=MemoryPlan())
    found = {size: train(task, size) for size in (1, 2)}
    wall = {size: ranks[0]["wall_s"] for size, ranks in found.items()}
    cpu = {size: sum(rank["cpu_s"] for rank in ranks) for size, ranks in found.items()}
    emit(
        "ranks",
        k=task.config.k,
        nnz=cells,
        wall_s=wall,
        cpu_s=cpu,
        ratio=wall[1] / wall[2],
        best_ratio=2 * cpu[1] / cpu[2],
        imbalance=max(rank["cpu_s"] for rank in found[2]) / cpu[2] * 2,
        seconds_of_one=found[1][0]["seconds"],
        seconds_of_two=[rank["seconds"] for rank in found[2]],
    )


def against_estimates(task: RankTask, cells: int, ranks: int, memory: int) -> None:
    """The case `memory`."""
    size = task.problem_size(cells, ranks)
    for factors, matrix in PLANS:
        config = task.config.model_copy(update={"exchange": factors, "matrix": matrix, "sweeps": 1})
        plan, _ = plan_memory(size, config, 1 << 60)
        if plan.streamed:
            plan = replace(plan, block_cells=memory // 480, fetched_rows=1 << 13)
        estimate = estimate_memory(size, plan)
        found = train(replace(task, config=config, memory_plan=plan), ranks)
        peak = max(rank["peak"] for rank in found)
        emit("memory", factors=factors, matrix=matrix, k=config.k, nnz=cells, ranks=ranks,
             estimated=estimate.peak, peak=peak, ratio=estimate.peak / peak, wall_s=found[0]["wall_s"])  # fmt: skip


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warehouse", required=True)
    parser.add_argument("--cells", type=int, default=4_000_000)
    parser.add_argument("--k", type=int, default=128)
    parser.add_argument("--sweeps", type=int, default=2)
    parser.add_argument("--cases", nargs="+", choices=["ranks", "memory"], default=["ranks", "memory"])
    parser.add_argument("--streamed-memory", type=int, default=1 << 28, help="bytes that size the blocks")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    x = largest_cells(arguments.warehouse, arguments.cells).tocoo()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "matrix.parquet")
        ids = {"row_id": x.row.astype(np.int32), "col_id": x.col.astype(np.int32)}
        pq.write_table(pa.table({**ids, "value": x.data.astype(np.float64)}), path, row_group_size=1 << 19)
        task = RankTask(
            files=(str(path),), value="value", shape=x.shape, symmetric=False, unit=1, objective=PRESETS["ppmi"],
            config=TrainConfig(k=arguments.k, sweeps=arguments.sweeps, tolerance=0.0, checkpoint_every=99), seed=1,
            directory="",
        )  # fmt: skip
        cells = x.nnz
        del x
        if "ranks" in arguments.cases:
            against_two_ranks(task, cells)
        if "memory" in arguments.cases:
            against_estimates(task, cells, 2, arguments.streamed_memory)


if __name__ == "__main__":
    main()
