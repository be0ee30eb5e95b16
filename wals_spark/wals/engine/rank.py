"""The program of one rank: read, redistribute, alternate, checkpoint, write. Imports no pyspark.

Every rank runs the same half-sweeps: the Gramian of the fixed side, the own rows of the other side, the solved
rows to everyone, the loss. All decisions are taken from numbers that are equal on all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from wals_spark import storage
from wals_spark.cluster.process_group import Group
from wals_spark.errors import InputError
from wals_spark.factors.foldin import log_mean
from wals_spark.matrix.coo import Coo, list_row_groups, read_coo, read_coo_batches
from wals_spark.wals.engine import checkpoint
from wals_spark.wals.engine.collectives import all_gather_rows
from wals_spark.wals.engine.convergence import check_loss, has_converged, loss_magnitude, without_rounding
from wals_spark.wals.engine.factors import FactorLayout, FactorStore, ReplicatedFactors, ShardedFactors
from wals_spark.wals.engine.make_solver import make_solver
from wals_spark.wals.engine.memory_estimate import plan_memory
from wals_spark.wals.engine.result import write_result
from wals_spark.wals.engine.start import start_factors
from wals_spark.wals.engine.status import PhaseTimer, StatusReport
from wals_spark.wals.engine.system_memory import memory_per_rank, peak_memory
from wals_spark.wals.engine.task import RankTask
from wals_spark.wals.partition.build import build_sides
from wals_spark.wals.partition.memory_plan import MemoryPlan
from wals_spark.wals.partition.side import SIDES, Side
from wals_spark.wals.solvers.cpu import Solver, rotation_pays
from wals_spark.wals.solvers.non_quadratic import make_row_update
from wals_spark.wals.solvers.row_update import Offsets, RowUpdate
from wals_spark.wals.solvers.system import System, one_blas_thread


def run(task: RankTask, group: Group, after_half: Callable[[int], None] | None = None) -> dict[str, Any]:
    """Train, from the newest checkpoint if there is one; returns facts, the same on every rank.

    Parameters
    ----------
    task : RankTask
    group : Group
    after_half : callable, optional
        Called with the number of half-sweeps done, after their checkpoint.
    """
    phases = PhaseTimer()
    with one_blas_thread():
        task = with_memory_plan(task, group)
        config, plan = task.config, task.memory_plan
        assert plan is not None
        row, col = _build_sides(task, plan, group, phases)
        sides = {"row": row, "col": col}
        kind = ShardedFactors if plan.sharded else ReplicatedFactors
        layout = FactorLayout(config.k, task.objective.bias)
        store = kind(group, sides, layout, np.dtype(config.precision))
        with phases("start"):
            half, losses = start_factors(task, store)
        resumed_at = half
        row_update = make_row_update(task.objective, task.threads)
        half, losses = _alternate(task, store, row_update, half, losses, phases, after_half)
        with phases("write"):
            written, singular = write_result(task, store)
    empty = {f"empty_{side}s": int((sides[side].cell_counts == 0).sum()) for side in SIDES}
    return {
        "half_sweeps": half,
        "losses": losses,
        "constant": row_update.constant if row_update is not None else 0.0,
        "converged": half < 2 * config.sweeps or has_converged(losses, config.tolerance),
        "resumed_at": resumed_at,
        "nnz": int(row.cell_counts.sum()),
        "total": float(row.sums.sum()),
        "log_means": {side: log_mean(sides[side].sums, sides[side].cell_counts) for side in SIDES},
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


def _build_sides(task: RankTask, plan: MemoryPlan, group: Group, phases: PhaseTimer) -> tuple[Side, Side]:
    """Read this rank's share of the files and build the sides."""
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


def _alternate(
    task: RankTask,
    store: FactorStore,
    row_update: RowUpdate | None,
    half: int,
    losses: Sequence[float],
    phases: PhaseTimer,
    after_half: Callable[[int], None] | None,
) -> tuple[int, list[float]]:
    """Half-sweeps until the loss stands still or the sweeps are used up."""
    solver: Solver = make_solver(task)
    config, group, losses = task.config, store.group, list(losses)
    saved = half
    magnitude = loss_magnitude(store, task.objective.rho)
    report = StatusReport(task, half, phases)
    if row_update is not None:
        _evaluate(store, row_update, task.order[half % 2], task.order[1 - half % 2])
    sweeps = 0 if task.start_only else config.sweeps
    last = half >= 2 * sweeps or (half % 2 == 0 and has_converged(losses, config.tolerance))
    while not last:
        name, fixed = task.order[half % 2], task.order[1 - half % 2]
        side = store.sides[name]
        with phases("gramian"):
            gramian = store.gramian(fixed, task.threads, task.device)
        with phases("solve"):
            solved, row_loss = _half_step(task, store, solver, row_update, name, fixed, gramian)
        with phases("exchange"):
            store.set_own_rows(name, solved)
        if row_update is not None:
            with phases("look"):
                loss = _evaluate(store, row_update, fixed, name)
        else:
            with phases("exchange"):
                all_losses = np.zeros(side.size)
                all_gather_rows(group, side.owner, side.ids, row_loss, all_losses)
                loss = float(all_losses.sum()) + store.regularization(fixed)
        half += 1
        loss = without_rounding(loss, losses, config.precision, magnitude)
        at_floor = check_loss(loss, losses, config.precision, half, magnitude)
        losses.append(loss)
        last = half == 2 * sweeps or at_floor or (half % 2 == 0 and has_converged(losses, config.tolerance))
        if half - saved >= config.checkpoint_every or last:
            with phases("checkpoint"):
                changed = (name,) if half - saved == 1 and saved > 0 else SIDES
                rows, sizes = (
                    {side: store.rows_to_write(side) for side in changed},
                    dict(zip(SIDES, task.shape, strict=True)),
                )
                checkpoint.save(group, task.checkpoints, half, losses, rows, sizes, task.facts)
            saved = half
        if group.rank == 0:
            storage.write_json(task.status_path, report.after(half, losses, side))
        if after_half is not None:
            after_half(half)
    return half, losses


def _evaluate(store: FactorStore, row_update: RowUpdate, name: str, fixed: str) -> float:
    """The loss at the factors as they are, by the evaluation that the half-step of a side needs."""
    side = store.sides[name]
    (block,) = side.blocks
    filled = store.sides[fixed].cell_counts > 0
    offsets = Offsets(side.offsets[block.rows.ids], store.sides[fixed].offsets, filled)
    sums = row_update.evaluate(block.rows, store.own_rows(name), store.arrays[fixed], offsets)
    everywhere = np.zeros((side.size, sums.shape[1]))
    all_gather_rows(store.group, side.owner, side.ids, sums, everywhere)
    return row_update.loss(everywhere) + store.regularization(name) + store.regularization(fixed)


def _half_step(
    task: RankTask,
    store: FactorStore,
    solver: Solver,
    row_update: RowUpdate | None,
    name: str,
    fixed: str,
    gramian: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The own rows of a side and their losses, solved block by block."""
    side, before = store.sides[name], store.own_rows(name)
    layout = store.layout
    solved, row_loss = before.copy(), np.zeros(len(side.ids))
    for block, fixed_factors in store.blocks(name, fixed, gramian, task.objective.rho):
        if len(block.rows):
            system = System(
                fixed_factors,
                layout.known(before[block.positions]),
                layout.ridge(side.ridge[block.rows.ids]),
                before[block.positions, : layout.unknowns],
                biases=layout.unknowns - layout.k,
                rotation_pays=rotation_pays(side.cell_counts, layout.k, len(fixed_factors.z)),
            )
            try:
                if row_update is None:
                    x, row_loss[block.positions] = solver.solve(block.rows, system)
                else:
                    x = row_update.update_rows(block.rows, system, solver)
            except InputError as error:
                raise InputError(f"side {name}: {error}") from None
            solved[block.positions, : layout.unknowns] = x
    return solved, row_loss
