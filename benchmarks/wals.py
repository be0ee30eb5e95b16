"""Speed of the WALS engine beside `implicit` and against the machine's own ceilings; one JSON line per case.

    python benchmarks/wals.py --matrix warehouse/cooccurrence/batch_id=default --size 69049 --unit 2520 --k 64 128

The matrix is a directory of Parquet files (row_id, col_id, units), as the co-occurrence stage writes them; it is
pruned to its largest `--cells` cells. Every peer minimises the same objective (Hu-Koren with confidence 1 + x), and one
float64 function evaluates it for all. `cpu_s` counts processor seconds of all threads: unlike `wall_s` it says
something on a machine that others use too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from wals_spark.cluster.group import LocalGroup
from wals_spark.objective import make_objective
from wals_spark.wals.rank import RankTask, run

RIDGE = 0.01


def emit(case: str, **facts: Any) -> None:
    """One JSON line."""
    machine = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    print(json.dumps({"case": case, **facts, **machine, "load": os.getloadavg()[0]}), flush=True)


def timed(body: Callable[[], Any]) -> tuple[Any, float, float]:
    """Result, wall seconds, processor seconds."""
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    value = body()
    after, wall = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - started
    return value, wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def read_matrix(directory: str, unit: int, size: int, cells: int) -> csr_matrix:
    """The largest `cells` cells of the matrix, in weighted counts."""
    table = pq.read_table(directory, columns=["row_id", "col_id", "units"])
    row, col, units = (table[name].to_numpy() for name in ("row_id", "col_id", "units"))
    if len(units) > cells:
        kept = units >= np.partition(units, len(units) - cells)[len(units) - cells]
        row, col, units = row[kept], col[kept], units[kept]
    return csr_matrix(((units / unit).astype(np.float32), (row, col)), shape=(size, size))


def objective(x: csr_matrix, u: np.ndarray, v: np.ndarray) -> float:
    """``sum_all c (p - s)^2 + lambda (|U|^2 + |V|^2)`` in float64, c = 1 + x and p = 1 on observed cells."""
    total = float(((u.astype(np.float64).T @ u) * (v.astype(np.float64).T @ v)).sum())
    for start in range(0, x.shape[0], 512):
        part = x[start : start + 512]
        rows = np.repeat(np.arange(part.shape[0]) + start, np.diff(part.indptr))
        s = np.einsum("ij,ij->i", u[rows], v[part.indices]).astype(np.float64)
        total += float(((1.0 + part.data) * (1.0 - s) ** 2 - s**2).sum())
    return total + RIDGE * float((u.astype(np.float64) ** 2).sum() + (v.astype(np.float64) ** 2).sum())


def ceilings() -> dict[str, float]:
    """Measured on one core: float32 products and copied bytes per second."""
    with threadpool_limits(1):
        a = np.ones((1024, 1024), np.float32)
        product = min(timed(lambda: a @ a)[1] for _ in range(5))
        big = np.ones(1 << 25, np.float32)
        copy = min(timed(big.copy)[1] for _ in range(3))
    return {"gflops_per_core": 2 * 1024**3 / product / 1e9, "copy_gb_per_s": 2 * big.nbytes / copy / 1e9}


def ours(x: csr_matrix, k: int, sweeps: int, threads: int) -> dict[str, Any]:
    """Train; losses, and (wall, processor) clocks after each half-sweep."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "matrix.parquet")
        coo = x.tocoo()
        columns = {
            "row_id": coo.row.astype(np.int32),
            "col_id": coo.col.astype(np.int32),
            "value": coo.data.astype(np.float64),
        }
        pq.write_table(pa.table(columns), path, row_group_size=1 << 20)
        task = RankTask(
            files=(str(path),),
            value="value",
            shape=x.shape,
            symmetric=False,
            unit=1,
            objective=make_objective("implicit", alpha=1.0, regularization=RIDGE),
            k=k,
            sweeps=sweeps,
            tolerance=0.0,
            seed=1,
            directory=directory,
            threads=threads,
            checkpoint_every=2 * sweeps,
            gauge_power=None,
            start="positive",
        )
        clock: list[tuple[float, float]] = []

        def after_half(half: int) -> None:
            usage = resource.getrusage(resource.RUSAGE_SELF)
            clock.append((time.perf_counter(), usage.ru_utime + usage.ru_stime))

        result = run(task, LocalGroup(), after_half)
    return {"losses": result["losses"], "clock": clock, "seconds": result["seconds"]}


def against_implicit(x: csr_matrix, k: int, sweeps: int, threads: int, machine: dict[str, float]) -> None:
    """Time until our loss is at or below what `implicit` has after 15 iterations of its best setting."""
    from implicit.cpu.als import AlternatingLeastSquares

    confidence = x.copy()
    confidence.data = 1.0 + confidence.data
    model = AlternatingLeastSquares(
        factors=k, regularization=RIDGE, alpha=1.0, iterations=15, num_threads=threads, use_cg=True, random_state=1
    )
    with threadpool_limits(1, user_api="blas"):
        _, wall, cpu = timed(lambda: model.fit(confidence, show_progress=False))
    target = objective(x, model.user_factors, model.item_factors)
    emit("implicit", k=k, nnz=x.nnz, iterations=15, wall_s=wall, cpu_s=cpu, loss=target)
    found = ours(x, k, sweeps, threads)
    # The first half-sweep compiles and is timed by the average of the others.
    wall_half, cpu_half = ((found["clock"][-2][i] - found["clock"][0][i]) / (len(found["clock"]) - 2) for i in (0, 1))
    halves = next((i + 1 for i, loss in enumerate(found["losses"]) if loss <= target), None)
    work = x.nnz * float(k) ** 2 + x.shape[0] * float(k) ** 3 / 3
    emit(
        "wals",
        k=k,
        nnz=x.nnz,
        wall_s_per_half_sweep=wall_half,
        cpu_s_per_half_sweep=cpu_half,
        half_sweeps_to_the_loss_of_implicit=halves,
        wall_ratio=None if halves is None else halves * wall_half / wall,
        cpu_ratio=None if halves is None else halves * cpu_half / cpu,
        loss=found["losses"][-1],
        gflops_per_cpu_s=work / cpu_half / 1e9,
        share_of_ceiling=work / cpu_half / 1e9 / machine["gflops_per_core"],
        seconds=found["seconds"],
    )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matrix", required=True)
    parser.add_argument("--size", type=int, required=True, help="rows and columns")
    parser.add_argument("--unit", type=int, required=True)
    parser.add_argument("--cells", type=int, default=17_000_000)
    parser.add_argument("--k", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--sweeps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    machine = ceilings()
    emit("ceilings", **machine)
    x = read_matrix(arguments.matrix, arguments.unit, arguments.size, arguments.cells)
    for k in arguments.k:
        against_implicit(x, k, arguments.sweeps, arguments.threads, machine)


if __name__ == "__main__":
    main()
