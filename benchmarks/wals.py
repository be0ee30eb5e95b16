"""Speed of the WALS engine beside `implicit` and against the machine's own ceilings; one JSON line per case.

    python benchmarks/wals.py --warehouse W --k 64 128

The matrix is the counts of a warehouse, the largest `--cells` of them. ``--cases implicit``: every peer minimises the
same objective (Hu-Koren with confidence 1 + x), and one float64 function evaluates it for all. ``--cases roofline``:
one half-step of `--rows` random rows by every solver, best of some repetitions, with the arithmetic and the memory
traffic that its formulas need over what this machine was measured to do, and the parts of the exact one alone. `cpu_s`
counts processor seconds of all threads: unlike `wall_s` it says something on a machine that others use too.
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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from wals_spark.cluster.process_group import LocalGroup
from wals_spark.config import TrainConfig
from wals_spark.cooccurrence.count_matrix import read_matrix
from wals_spark.objective import make_objective
from wals_spark.wals.engine.rank import run
from wals_spark.wals.engine.task import RankTask
from wals_spark.wals.solvers.cache_lines import pad_rows
from wals_spark.wals.solvers.cpu import (
    TILE,
    BlockSolver,
    ConjugateGradientSolver,
    CpuSolver,
    Solver,
    rotation_pays,
    short_rows,
)
from wals_spark.wals.solvers.row_block import RowBlock
from wals_spark.wals.solvers.system import FixedFactors, System

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


def largest_cells(warehouse: str, cells: int) -> csr_matrix:
    """The largest `cells` weighted counts of a warehouse (more where several are equal to the least of them)."""
    x = read_matrix(warehouse).counts
    if x.nnz > cells:
        x.data[x.data < np.partition(x.data, x.nnz - cells)[x.nnz - cells]] = 0
        x.eliminate_zeros()
    return x.astype(np.float32)


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
    """Measured on one core, per processor second: float32 products and copied bytes."""
    with threadpool_limits(1):
        a = np.ones((1024, 1024), np.float32)
        product = min(timed(lambda: a @ a)[2] for _ in range(5))
        big, target = np.ones(1 << 25, np.float32), np.ones(1 << 25, np.float32)
        copy = min(timed(lambda: np.copyto(target, big))[2] for _ in range(3))
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
            config=TrainConfig(k=k, sweeps=sweeps, tolerance=0.0, checkpoint_every=2 * sweeps),
            seed=1,
            directory=directory,
            threads=threads,
            canonical=False,
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


STEPS, BLOCK, REPEATS = 4, 64, 4


def sample(x: csr_matrix, k: int, rows: int) -> tuple[RowBlock, System]:
    """A half-step of the objective of `against_implicit` for some random rows, and random factors."""
    rng = np.random.default_rng(0)
    chosen = x[np.sort(rng.choice(x.shape[0], min(rows, x.shape[0]), replace=False))].tocsr()
    count, others = chosen.shape
    features = pad_rows((rng.standard_normal((others, k)) / np.sqrt(k)).astype(np.float32))[:, :k]
    wide = features.astype(np.float64)
    block = RowBlock(
        np.arange(count),
        chosen.indptr.astype(np.int64),
        chosen.indices.astype(np.int32),
        np.ones(chosen.nnz, np.float32),
        chosen.data.astype(np.float32),
        np.ones(count),
    )
    start = (rng.standard_normal((count, k)) / np.sqrt(k)).astype(np.float32)
    ridge = np.full((count, k), RIDGE)
    fixed_factors = FixedFactors(features, np.ones(others), wide.T @ wide, 1.0)
    pays = rotation_pays(np.diff(x.indptr), k, others)
    return block, System(fixed_factors, np.zeros((count, 0)), ridge, start, rotation_pays=pays)


def work_of(name: str, n: np.ndarray, k: int, others: int, rotated: bool) -> tuple[float, float]:
    """Operations and bytes that the formulas of a solver need for rows of n cells."""
    n = n[n > 0].astype(np.float64)
    cholesky, through = n * k**2 + k**3 / 3, 16.0 * k**2
    line = 4.0 * k + 12.0
    rotation = 2.0 * (others + len(n)) * k**2
    if name == "cg":
        return float(4 * (STEPS + 1) * n.sum() * k + 2 * (STEPS + 1) * len(n) * k**2 + rotation), float(
            (STEPS + 1) * n.sum() * line
        )
    if name == "block":
        return float((n * k * BLOCK + k * BLOCK**2 / 3 + 8 * n * k).sum() + rotation), float(3 * n.sum() * line)
    if name == "exact" or not rotated:
        return float(cholesky.sum()), float((n * line + through).sum())
    short = short_rows(n.astype(np.int64), k)
    woodbury = n**2 * k + n**3 / 3 + 8 * n * k
    return float(np.where(short, woodbury, cholesky).sum() + rotation), float(
        (n * line + np.where(short, 8.0 * n**2 + 8.0 * n * k, through)).sum()
    )


def padding(k: int) -> float:
    """Computed over needed multiplications of the product in registers."""
    from wals_spark.wals.solvers.kernels.microkernel import SHORT, TALL

    lanes, computed = 16, 0
    for q in range(-(-k // lanes)):
        rows, done, half = min((q + 1) * lanes, k), 0, k - q * lanes <= lanes // 2
        while done < rows:
            done += SHORT if rows - done <= SHORT else 2 * TALL if half else TALL
        computed += done * lanes // (1 + half)
    return computed / (k * (k + 1) / 2)


def parts(block: RowBlock, system: System) -> dict[str, float]:
    """Processor seconds of gathering, products and Cholesky alone, for the rows of a block."""
    from numba import njit

    from wals_spark.wals.solvers.kernels.cholesky import factorise, solve_factored
    from wals_spark.wals.solvers.kernels.microkernel import LINE_BYTES, scale_line
    from wals_spark.wals.solvers.kernels.packed_panels import empty_panels, rank_update, to_panels

    @njit(nogil=True)
    def gather(indptr, indices, z, target, width):  # type: ignore[no-untyped-def]
        for i in range(len(indptr) - 1):
            for t in range(indptr[i], indptr[i + 1]):
                source = z.ctypes.data + indices[t] * width * z.itemsize
                place = target.ctypes.data + (t % TILE) * LINE_BYTES
                for q in range(width // target.shape[2]):
                    scale_line(place + q * target.strides[0], source + q * LINE_BYTES, z.dtype.type(1))

    @njit(nogil=True)
    def product(indptr, gathered, width, target):  # type: ignore[no-untyped-def]
        for i in range(len(indptr) - 1):
            left = indptr[i + 1] - indptr[i]
            while left > 0:
                rank_update(gathered, width, 0, min(left, TILE), target, gathered.dtype.type(0))
                left -= TILE

    @njit(nogil=True)
    def solve(rows, a, width, factor, inverses, scratch, b):  # type: ignore[no-untyped-def]
        for _ in range(rows):
            factorise(a, width, factor, inverses, scratch)
            solve_factored(factor, width, inverses, b)

    k = system.fixed_factors.z.shape[1]
    like = np.zeros(1, np.float32)
    gathered, target, factor = empty_panels(k, TILE, like), empty_panels(k, k, like), empty_panels(k, k, like)
    inverses, scratch = np.zeros((len(factor), 16, 16), np.float32), empty_panels(1, 16, like)
    a, b = to_panels(np.eye(k, dtype=np.float32)), np.zeros(16 * len(factor), np.float32)
    first, rows = block.indptr[:2], int((np.diff(block.indptr) > 0).sum())

    def run_all(indptr: np.ndarray, count: int) -> dict[str, float]:
        return {
            "gather": timed(lambda: gather(indptr, block.indices, system.fixed_factors.z, gathered, k))[2],
            "product": timed(lambda: product(indptr, gathered, k, target))[2],
            "solve": timed(lambda: solve(count, a, k, factor, inverses, scratch, b))[2],
        }

    run_all(first, 1)
    tried = [run_all(block.indptr, rows) for _ in range(REPEATS)]
    return {part: min(times[part] for times in tried) for part in tried[0]}


def roofline(x: csr_matrix, k: int, rows: int, threads: int, machine: dict[str, float]) -> None:
    """One line per solver: achieved over measured ceilings, per processor second."""
    block, system = sample(x, k, rows)
    fixed = system.fixed_factors
    few, small = sample(x, k, 8)
    solvers: dict[str, Solver] = {
        "exact": CpuSolver(threads),
        "auto": CpuSolver(threads, woodbury=True),
        "cg": ConjugateGradientSolver(threads, STEPS),
        "block": BlockSolver(threads, BLOCK),
    }
    n = block.lengths
    for name, solver in solvers.items():
        solver.solve(few, small)
        # The first solve brings features and scratch into memory; a training's half-steps find them there.
        _, wall, cpu = min((timed(partial(solver.solve, block, system)) for _ in range(REPEATS)), key=lambda t: t[2])
        rotation = 0.0
        if name in ("cg", "block") or (name == "auto" and system.rotation_pays):
            rotation = timed(
                lambda: (
                    fixed.z @ np.eye(k, dtype=np.float32),
                    np.linalg.eigh(fixed.gramian),
                )
            )[2]
        flops, traffic = work_of(name, n, k, x.shape[1], system.rotation_pays)
        emit(
            "roofline",
            solver=name,
            k=k,
            rows=len(n),
            cells=int(n.sum()),
            wall_s=wall,
            cpu_s=cpu,
            half_sweep_cpu_s=(cpu - rotation) * x.shape[0] / len(n) + rotation,
            gflops_per_cpu_s=flops / cpu / 1e9,
            share_of_products=flops / cpu / 1e9 / machine["gflops_per_core"],
            gb_per_cpu_s=traffic / cpu / 1e9,
            share_of_copies=traffic / cpu / 1e9 / machine["copy_gb_per_s"],
            padding=padding(k) if name in ("exact", "auto") else padding(min(BLOCK, k)) if name == "block" else 1.0,
            **({f"{part}_cpu_s": seconds for part, seconds in parts(block, system).items()} if name == "exact" else {}),
        )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warehouse", required=True)
    parser.add_argument("--cells", type=int, default=17_000_000)
    parser.add_argument("--k", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--sweeps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cases", nargs="+", choices=("implicit", "roofline"), default=["implicit"])
    parser.add_argument("--rows", type=int, default=4000, help="roofline: rows of the half-step")
    arguments = parser.parse_args()
    machine = ceilings()
    emit("ceilings", **machine)
    x = largest_cells(arguments.warehouse, arguments.cells)
    for k in arguments.k:
        if "roofline" in arguments.cases:
            roofline(x, k, arguments.rows, arguments.threads, machine)
        if "implicit" in arguments.cases:
            against_implicit(x, k, arguments.sweeps, arguments.threads, machine)


if __name__ == "__main__":
    main()
