"""The half-step on a GPU against the device's own ceilings; one JSON line per case. Needs neither Spark nor a network.

    python benchmarks/wals_gpu.py --rows 48000 --nnz 48000000 --k 64 128 256

The matrix is random with the skew of a co-occurrence matrix (row lengths and columns by Zipf's law) unless `--matrix`
names a `.npz` with `indptr` and `indices`. Peers in the same run: the same half-step as padded batches of torch's
products and Cholesky, and the ceilings measured with torch: float32 products without tensor cores, TF32 products, a
copy in device memory. `bound` is the time of the flops that are needed, k (k + 1) per cell for the lower triangle and
k^3 / 3 per row, at the measured float32 rate.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from wals_spark.wals.solvers.gpu.cuda_solver import CudaSolver, Layout
from wals_spark.wals.solvers.gpu.torch_solver import TorchSolver
from wals_spark.wals.solvers.row_block import RowBlock
from wals_spark.wals.solvers.system import FixedFactors, System


def emit(case: str, **facts: Any) -> None:
    """One JSON line."""
    print(
        json.dumps({"benchmark": "wals_gpu", "case": case, "device": torch.cuda.get_device_name(), **facts}), flush=True
    )


def seconds(body: Callable[[], Any], repeats: int = 5) -> float:
    """Median over repeats, after one that warms up, by the device's own events."""
    body()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        body()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
    return float(np.median(times))


def ceilings() -> dict[str, float]:
    """Measured rates: TFLOP/s of products in float32 and TF32, and TB/s read plus written by a copy."""
    a = torch.randn(8192, 8192, device="cuda")
    rates = {}
    for name, allowed in (("float32_tflops", False), ("tf32_tflops", True)):
        torch.backends.cuda.matmul.allow_tf32 = allowed
        rates[name] = 2 * 8192**3 / seconds(lambda: a @ a) / 1e12
    torch.backends.cuda.matmul.allow_tf32 = False
    big = torch.randn(1 << 30, device="cuda")
    rates["copy_tb_per_s"] = 2 * big.nbytes / seconds(big.clone) / 1e12
    return rates


def random_block(rows: int, columns: int, nnz: int, seed: int) -> RowBlock:
    """Rows with lengths by Zipf's law (at most every column), columns likewise, targets and weights at random."""
    generator = np.random.default_rng(seed)
    share = 1.0 / np.arange(10, rows + 10) ** 0.9
    lengths = np.maximum(1, (share / share.sum() * nnz)).astype(np.int64)
    lengths = np.minimum(lengths, columns)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    total = int(indptr[-1])
    indices = (columns * generator.random(total, np.float32) ** 3).astype(np.int32)
    np.clip(indices, 0, columns - 1, out=indices)
    return make_block(indptr, indices, columns, generator)


def make_block(indptr: np.ndarray, indices: np.ndarray, columns: int, generator: np.random.Generator) -> RowBlock:
    """A block with random targets and weights."""
    rows, nnz = len(indptr) - 1, len(indices)
    m = generator.random(nnz, np.float32)
    d = generator.random(nnz, np.float32)
    return RowBlock(np.arange(rows), indptr, indices, m, d, np.ones(rows))


def make_system(block: RowBlock, columns: int, k: int, generator: np.random.Generator) -> System:
    """Random features with their Gramian."""
    z = generator.standard_normal((columns, k), np.float32) / np.sqrt(k).astype(np.float32)
    h = np.ones(columns)
    rows = len(block)
    gramian = (z.T.astype(np.float64) @ z).astype(np.float64)
    return System(FixedFactors(z, h, gramian, 0.05), np.zeros((rows, 0)), np.full((rows, k), 0.1))


def exact_error(
    block: RowBlock, system: System, x: np.ndarray, row_loss: np.ndarray, rows: np.ndarray
) -> dict[str, float]:
    """Largest relative distance of rows and losses from a float64 solution in NumPy."""
    worst, worst_loss = 0.0, 0.0
    z, k = system.fixed_factors.z.astype(np.float64), system.ridge.shape[1]
    for row in rows:
        part = slice(block.indptr[row], block.indptr[row + 1])
        j, m, d = block.indices[part], block.target[part].astype(np.float64), block.weight[part].astype(np.float64)
        own = system.fixed_factors.rho * block.popularity[row]
        c = (d + own * system.fixed_factors.h[j]) * m
        a = own * system.fixed_factors.gramian + (z[j].T * d) @ z[j]
        b = z[j].T @ c
        held = system.known[row]
        constant = c @ m - 2 * b[k:] @ held + held @ a[k:, k:] @ held
        b = b[:k] - a[:k, k:] @ held
        u = np.linalg.solve(a[:k, :k] + np.diag(system.ridge[row]), b)
        worst = max(worst, float(np.linalg.norm(u - x[row]) / np.linalg.norm(u)))
        value = constant - b @ u
        worst_loss = max(worst_loss, abs(float((value - row_loss[row]) / value)))
    return {"worst_row": worst, "worst_loss": worst_loss}


def measure(block: RowBlock, columns: int, k: int, rates: dict[str, float], peers: bool) -> None:
    """Both routes on one system, the second the peer of the first."""
    generator = np.random.default_rng(k)
    system = make_system(block, columns, k, generator)
    solvers = {"cuda": CudaSolver("cuda")} | ({"torch": TorchSolver("cuda")} if peers else {})
    some = np.unique(np.r_[0, 1, generator.integers(0, len(block), 20), len(block) - 1])
    needed = k * (k + 1.0) * len(block.indices) + k**3 / 3.0 * len(block)
    bound = needed / rates["float32_tflops"] / 1e12
    found = {}
    for name, solver in solvers.items():
        x, loss = solver.solve(block, system)
        error = exact_error(block, system, x, loss, some)
        started = time.perf_counter()
        for _ in range(3):
            solver.solve(block, system)
        whole = (time.perf_counter() - started) / 3
        device = None
        if isinstance(solver, CudaSolver):
            device = seconds(partial(solver.solve_prepared, solver.prepare(block, system)))
        found[name] = whole
        emit(
            name, k=k, rows=len(block), nnz=len(block.indices), **error, whole_s=whole, device_s=device,
            cells_per_s=len(block.indices) / (device or whole), bound_s=bound, share_of_bound=bound / (device or whole),
        )  # fmt: skip
    if peers:
        emit("ratio", k=k, cuda_over_torch=found["cuda"] / found["torch"])


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=48_000)
    parser.add_argument("--nnz", type=int, default=48_000_000)
    parser.add_argument("--matrix")
    parser.add_argument("--k", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--no-peers", action="store_true")
    arguments = parser.parse_args()
    rates = ceilings()
    emit("ceilings", **rates)
    if arguments.matrix:
        data = np.load(arguments.matrix)
        columns = int(data["indices"].max()) + 1
        block = make_block(data["indptr"], data["indices"], columns, np.random.default_rng(0))
    else:
        columns = arguments.rows
        block = random_block(arguments.rows, columns, arguments.nnz, 0)
    for k in arguments.k:
        if Layout(k, 0).fits:
            measure(block, columns, k, rates, not arguments.no_peers)


if __name__ == "__main__":
    main()
