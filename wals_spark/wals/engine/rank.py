"""The program of one rank: read, exchange, alternate, checkpoint, write. Imports no pyspark.

Every rank runs the same half-sweeps: the Gramian of the fixed side, the own rows of the other side, the solved
rows to everyone, the loss. All decisions are taken from numbers that are equal on all ranks.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from wals_spark import storage
from wals_spark.cluster.process_group import Group
from wals_spark.errors import InputError, TransientError, WalsSparkError
from wals_spark.factors import gauge
from wals_spark.matrix.coo import Coo, list_row_groups, read_coo, read_coo_batches
from wals_spark.matrix.list_column import lists_to_matrix, matrix_to_lists
from wals_spark.wals.engine import checkpoint
from wals_spark.wals.engine.collectives import all_gather_rows
from wals_spark.wals.engine.factors import Coordinates, Model, Replicated, Sharded
from wals_spark.wals.engine.initial_factors import initial_factors
from wals_spark.wals.engine.memory_estimate import plan_memory
from wals_spark.wals.engine.system_memory import memory_per_rank, peak_memory
from wals_spark.wals.engine.task import RankTask
from wals_spark.wals.partition.build import build_sides
from wals_spark.wals.partition.memory_plan import MemoryPlan
from wals_spark.wals.partition.side import SIDES, Side
from wals_spark.wals.solvers.cpu import (
    BlockSolver,
    ConjugateGradientSolver,
    CpuSolver,
    Solver,
    rotation_pays,
)
from wals_spark.wals.solvers.non_quadratic import make_row_update
from wals_spark.wals.solvers.row_update import Offsets, RowUpdate
from wals_spark.wals.solvers.system import System, one_blas_thread

logger = logging.getLogger(__name__)

RISE_ALLOWED = {"float32": 1e-5, "float64": 1e-9}
ROUNDING = {"float32": 1e-6, "float64": 1e-14}
"""Of the first loss: a loss near zero is the difference of numbers as large as that."""
VECTORS_AT_ONCE = 1 << 16


class DivergedError(WalsSparkError):
    """The loss of an exact solver rose, or is not a number: a bug or a broken machine, never the data."""


class Phases:
    """Seconds spent in each kind of work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started


def run(task: RankTask, group: Group, after_half: Callable[[int], None] | None = None) -> dict[str, Any]:
    """Train, from the newest checkpoint if there is one; returns facts, the same on every rank.

    Parameters
    ----------
    task : RankTask
    group : Group
    after_half : callable, optional
        Called with the number of half-sweeps done, after their checkpoint.
    """
    phases = Phases()
    with one_blas_thread():
        task = with_memory_plan(task, group)
        config, plan = task.config, task.memory_plan
        assert plan is not None
        row, col = _place(task, plan, group, phases)
        sides = {"row": row, "col": col}
        kind = Sharded if plan.sharded else Replicated
        coordinates = Coordinates(config.k, task.objective.bias)
        model = kind(group, sides, coordinates, np.dtype(config.precision))
        with phases("start"):
            half, losses = _start(task, model)
        resumed_at = half
        half, losses = _alternate(task, model, half, losses, phases, after_half)
        with phases("write"):
            written, singular = _write_result(task, model)
    empty = {f"empty_{side}s": int((sides[side].cell_counts == 0).sum()) for side in SIDES}
    return {
        "half_sweeps": half,
        "losses": losses,
        "converged": half < 2 * config.sweeps or _converged(losses, config.tolerance),
        "resumed_at": resumed_at,
        "nnz": int(row.cell_counts.sum()),
        **empty,
        "singular_values": singular,
        "files": written,
        "seconds": {name: round(seconds, 3) for name, seconds in phases.seconds.items()},
        "peak_memory_bytes": peak_memory(),
        "ranks": group.size,
        "exchange": plan.factors,
        "matrix": plan.matrix,
    }


def with_memory_plan(task: RankTask, group: Group) -> RankTask:
    """The task with a memory plan, the same on every rank: the given one, the configured one, or one that fits."""
    if task.memory_plan is not None:
        return task
    config = task.config
    if "auto" not in (config.exchange, config.matrix):
        return replace(task, memory_plan=MemoryPlan(config.exchange, config.matrix, scratch=config.scratch))
    cells = sum(row_group.rows for row_group in list_row_groups(task.files))
    plan, _ = plan_memory(task.problem_size(cells, group.size), config, memory_per_rank(group, task.device))
    return replace(task, memory_plan=plan)


def _place(task: RankTask, plan: MemoryPlan, group: Group, phases: Phases) -> tuple[Side, Side]:
    """Read this rank's share of the files and make the sides."""
    columns: dict[str, Any] = {"weight": task.weight, "signed": task.signed}

    def in_portions() -> Iterator[Coo]:
        return read_coo_batches(task.files, group.rank, group.size, task.shape, task.value, **columns)

    with phases("read"):
        cells: Coo | Callable[[], Iterator[Coo]] = in_portions
        if not plan.streamed:
            cells = read_coo(task.files, group.rank, group.size, task.shape, task.value, **columns)
    with phases("place"):
        return build_sides(
            group,
            cells,
            task.shape,
            task.objective,
            symmetric=task.symmetric,
            unit=task.unit,
            k=task.config.k,
            dtype=np.dtype(task.config.precision),
            duplicates=task.duplicates,
            plan=plan,
        )


def _start(task: RankTask, model: Model) -> tuple[int, list[float]]:
    """Factors of the newest checkpoint, or starting factors; returns the half-sweeps done and their losses."""
    group = model.group
    state = checkpoint.load(task.checkpoints, task.facts, {side: model.ids(side) for side in SIDES})
    reached = group.all_gather_object(state.half if state else 0)
    if len(set(reached)) > 1:
        raise TransientError(
            f"the ranks see different checkpoints in {task.checkpoints} (half-sweeps {reached}); that directory must "
            "be the same for all of them: set warehouse to a shared file system"
        )
    if state is None:
        if task.objective.bias == "fixed":
            for side in SIDES:
                model.arrays[side][:, task.config.k] = model.sides[side].offsets[model.ids(side)]
        _start_columns(task, model)
        return 0, []
    logger.info("rank %d resumes after half-sweep %d", group.rank, state.half)
    model.arrays.update(state.factors)
    return state.half, state.losses


def _start_columns(task: RankTask, model: Model) -> None:
    """Random columns; rows stay zero, since they are solved first. So do empty columns."""
    x, ids = model.arrays["col"], model.ids("col")
    filled = model.sides["col"].cell_counts[ids] > 0
    places = np.flatnonzero(filled)
    # Making random numbers takes six words for each.
    for part in checkpoint.slices(len(places), 6 * 8 * task.config.k):
        random = initial_factors(task.seed, "col", ids[places[part]], task.config.k)
        if task.start == "positive":
            random = np.abs(random) / np.linalg.norm(random, axis=1, keepdims=True)
        x[places[part], : task.config.k] = random
    if task.initial is not None:
        place = np.full(model.sides["col"].size, -1)
        place[ids] = np.where(filled, np.arange(len(ids)), -1)
        for given, vectors in read_vectors(task.initial, task.config.k, model.sides["col"].size):
            here = place[given] >= 0
            x[place[given[here]], : task.config.k] = vectors[here]


def read_vectors(path: str, k: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids and vectors of a Parquet file or directory of (id, vector), some at a time.

    Raises
    ------
    InputError
        Vectors of another length, not finite, or ids outside 0 .. size - 1.
    """
    import pyarrow.dataset as ds

    fs, local = storage.filesystem(path)
    dataset = ds.dataset(local, filesystem=fs, format="parquet")
    for batch in dataset.to_batches(columns=["id", "vector"], batch_size=VECTORS_AT_ONCE):
        if not len(batch):
            continue
        ids, vectors = batch["id"].to_numpy(), lists_to_matrix(batch["vector"])
        if vectors.shape[1] != k:
            raise InputError(f"initial factors have {vectors.shape[1]} numbers per vector, but k is {k}")
        if ids.min() < 0 or ids.max() >= size or not np.isfinite(vectors).all():
            raise InputError(f"initial factors at {path}: ids outside 0 .. {size - 1}, or numbers that are not finite")
        yield ids, vectors


def _alternate(
    task: RankTask,
    model: Model,
    half: int,
    losses: Sequence[float],
    phases: Phases,
    after_half: Callable[[int], None] | None,
) -> tuple[int, list[float]]:
    """Half-sweeps until the loss stands still or the sweeps are used up."""
    solver: Solver = make_solver(task)
    row_update = make_row_update(task.objective, task.threads)
    group, losses = model.group, list(losses)
    saved = half
    magnitude = _magnitude(model, task.objective.rho)
    started, first = time.monotonic(), half
    if row_update is not None:
        _evaluate(model, row_update, SIDES[half % 2], SIDES[1 - half % 2])
    while half < 2 * task.config.sweeps and not (half % 2 == 0 and _converged(losses, task.config.tolerance)):
        name, fixed = SIDES[half % 2], SIDES[1 - half % 2]
        side = model.sides[name]
        with phases("gramian"):
            gramian = model.gramian(fixed, task.threads, task.device)
        with phases("solve"):
            solved, row_loss = _half_step(task, model, solver, row_update, name, fixed, gramian)
        with phases("exchange"):
            model.put(name, solved)
        if row_update is not None:
            with phases("look"):
                loss = _evaluate(model, row_update, fixed, name)
        else:
            with phases("exchange"):
                all_losses = np.zeros(side.size)
                all_gather_rows(group, side.owner, side.ids, row_loss, all_losses)
                loss = float(all_losses.sum()) + model.regularization(fixed)
        half += 1
        _check_loss(loss, losses, task, half, magnitude)
        losses.append(loss)
        last = half == 2 * task.config.sweeps or (half % 2 == 0 and _converged(losses, task.config.tolerance))
        if half - saved >= task.config.checkpoint_every or last:
            with phases("checkpoint"):
                changed = (name,) if half - saved == 1 and saved > 0 else SIDES
                rows, sizes = {side: model.mine(side) for side in changed}, dict(zip(SIDES, task.shape, strict=True))
                checkpoint.save(group, task.checkpoints, half, losses, rows, sizes, task.facts)
            saved = half
        if group.rank == 0:
            storage.write_json(
                task.status_path, _status(task, losses, half, first, time.monotonic() - started, side, phases)
            )
        if after_half is not None:
            after_half(half)
    return half, losses


def _evaluate(model: Model, row_update: RowUpdate, name: str, fixed: str) -> float:
    """The loss at the factors as they are, by the evaluation that the half-step of a side needs."""
    side = model.sides[name]
    (block,) = side.blocks
    filled = model.sides[fixed].cell_counts > 0
    offsets = Offsets(side.offsets[block.rows.ids], model.sides[fixed].offsets, filled)
    sums = row_update.evaluate(block.rows, model.own(name), model.arrays[fixed], offsets)
    everywhere = np.zeros((side.size, sums.shape[1]))
    all_gather_rows(model.group, side.owner, side.ids, sums, everywhere)
    return row_update.loss(everywhere) + model.regularization(name) + model.regularization(fixed)


def _half_step(
    task: RankTask,
    model: Model,
    solver: Solver,
    row_update: RowUpdate | None,
    name: str,
    fixed: str,
    gramian: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The own rows of a side and their losses, solved block by block."""
    side, before = model.sides[name], model.own(name)
    coordinates = model.coordinates
    solved, row_loss = before.copy(), np.zeros(len(side.ids))
    for block, fixed_factors in model.blocks(name, fixed, gramian, task.objective.rho):
        if len(block.rows):
            system = System(
                fixed_factors,
                coordinates.held(before[block.positions]),
                coordinates.ridge(side.ridge[block.rows.ids]),
                before[block.positions, : coordinates.free],
                biases=coordinates.free - coordinates.k,
                rotation_pays=rotation_pays(side.cell_counts, coordinates.k, len(fixed_factors.z)),
            )
            if row_update is None:
                x, row_loss[block.positions] = solver.solve(block.rows, system)
            else:
                x = row_update.update_rows(block.rows, system, solver)
            solved[block.positions, : coordinates.free] = x
    return solved, row_loss


def make_solver(task: RankTask) -> Solver:
    """The solver for the device of the task."""
    if task.device == "cuda":
        from wals_spark.wals.solvers.gpu import nvrtc
        from wals_spark.wals.solvers.gpu.cuda_solver import CudaSolver
        from wals_spark.wals.solvers.gpu.torch_solver import TorchSolver

        return CudaSolver("cuda") if nvrtc.available() else TorchSolver("cuda")
    if task.config.solver == "cg":
        return ConjugateGradientSolver(task.threads, task.config.cg_steps)
    if task.config.solver == "block":
        return BlockSolver(task.threads, task.config.block_size)
    return CpuSolver(task.threads, woodbury=task.config.solver == "auto")


def _magnitude(model: Model, rho: float) -> float:
    """``sum_observed (|d_ij| + rho g_i h_j) m_ij^2``: the size of the terms that cancel in a loss near zero."""
    h = float(model.sides["col"].popularity.max(initial=0.0))
    total = 0.0
    for block in model.sides["row"].blocks:
        rows = block.rows
        weight = np.abs(rows.weight) + rho * h * np.repeat(rows.popularity, np.diff(rows.indptr))
        total += float((weight * rows.target.astype(np.float64) ** 2).sum())
    return float(model.group.all_reduce(np.array(total)))


def _converged(losses: list[float], tolerance: float) -> bool:
    """Whether the last sweep lowered the loss by less than the tolerance, relatively."""
    return tolerance > 0 and len(losses) >= 4 and losses[-3] - losses[-1] < tolerance * abs(losses[-3])


def _check_loss(loss: float, losses: list[float], task: RankTask, half: int, magnitude: float) -> None:
    if not math.isfinite(loss):
        raise DivergedError(f"the loss after half-sweep {half} is {loss}; expected a finite number")
    if not losses:
        return
    rise, rounding = RISE_ALLOWED[task.config.precision], ROUNDING[task.config.precision]
    allowed = rise * abs(losses[-1]) + rounding * (magnitude + abs(losses[0]))
    if loss > losses[-1] + allowed:
        raise DivergedError(
            f"the loss rose from {losses[-1]!r} to {loss!r} in half-sweep {half} although no row's part of it may "
            f"rise; try train.precision: float64 (now {task.config.precision}) or more regularisation, and report this"
        )


def _status(
    task: RankTask, losses: list[float], half: int, first: int, seconds: float, side: Side, phases: Phases
) -> dict[str, Any]:
    per_half = seconds / max(1, half - first)
    change = (losses[-2] - losses[-1]) / abs(losses[-2]) if len(losses) > 1 and losses[-2] else None
    return {
        "half_sweep": half,
        "half_sweeps": 2 * task.config.sweeps,
        "sweep": (half + 1) // 2,
        "side": SIDES[(half - 1) % 2],
        "loss": losses[-1],
        "relative_change": change,
        "seconds_per_half_sweep": round(per_half, 3),
        "cells_per_s": int(side.cell_counts.sum() / per_half) if per_half > 0 else None,
        "eta_s": round(per_half * (2 * task.config.sweeps - half), 1),
        "peak_memory_bytes": peak_memory(),
        "seconds": {name: round(value, 3) for name, value in phases.seconds.items()},
    }


def _write_result(task: RankTask, model: Model) -> tuple[list[dict[str, Any]], list[float]]:
    """Both sides in the canonical gauge, every rank its rows; returns the shards and singular values."""
    k = task.config.k
    if not task.canonical or task.objective.prediction != "product":
        return _write_sides(task, model, np.eye(k), np.eye(k)), []
    r_u, r_v = (_triangular_factor(model, side, task.threads) for side in SIDES)
    t_u, t_v, singular = gauge.gauge_transforms(r_u, r_v, task.config.gauge_power)
    extremes = model.over("row", (k,), lambda x, ids: gauge.column_extremes(x[:, :k] @ t_u))
    t_u, t_v = gauge.fix_signs(t_u, t_v, gauge.column_extremes(np.stack(extremes)))
    return _write_sides(task, model, t_u, t_v), [float(value) for value in singular]


def _write_sides(task: RankTask, model: Model, t_u: np.ndarray, t_v: np.ndarray) -> list[dict[str, Any]]:
    k, rank = task.config.k, model.group.rank
    entries = []
    for side, t in (("row", t_u), ("col", t_v)):
        ids, x = model.mine(side)
        for number, part in enumerate(checkpoint.slices(len(x), x.itemsize * k)):
            vectors = (x[part, :k] @ t).astype(np.float32)
            if not np.isfinite(vectors).all():
                raise DivergedError(f"factors of side {side} are not finite after the change of gauge")
            bias = x[part, k] if model.coordinates.width > k else np.zeros(len(vectors), np.float32)
            path = storage.join(task.result, f"{side}-{rank:05d}-{number:03d}.parquet")
            storage.write_bytes(path, encode_result(ids[part], vectors, bias.astype(np.float32)))
            entries.append({"side": side, "path": path, "rows": len(vectors)})
    return [entry for part in model.group.all_gather_object(entries) for entry in part]


def _triangular_factor(model: Model, side: str, threads: int) -> np.ndarray:
    k = model.coordinates.k
    parts = model.over(side, (k, k), lambda x, ids: gauge.triangular_factor(x[:, :k]), threads)
    return gauge.stack_factors(parts, k)


def encode_result(ids: np.ndarray, vectors: np.ndarray, bias: np.ndarray) -> bytes:
    """Rows of the result as a Parquet file of (token_id int32, vector list<float>, bias float)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    lists = matrix_to_lists(vectors.astype(np.float32, copy=False))
    sink = pa.BufferOutputStream()
    table = pa.table({"token_id": pa.array(ids.astype(np.int32)), "vector": lists, "bias": pa.array(bias)})
    pq.write_table(table, sink, compression="none", use_dictionary=False)
    return sink.getvalue().to_pybytes()
