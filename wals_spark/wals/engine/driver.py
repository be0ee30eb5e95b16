"""The driver's part of a training: start the ranks, show their progress, start them again when one fails."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from wals_spark import storage
from wals_spark.cluster.barrier import RankContext, run_barrier
from wals_spark.cluster.preflight import BarrierPlan
from wals_spark.cluster.process_group import process_group
from wals_spark.cluster.profile import own_gpu
from wals_spark.errors import TransientError, WalsSparkError
from wals_spark.heartbeat import following_status
from wals_spark.matrix.placement import one_row_per_rank
from wals_spark.progress import Progress
from wals_spark.wals.engine.rank import run
from wals_spark.wals.engine.task import RankTask

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)


def train(spark: SparkSession, task: RankTask, plan: BarrierPlan) -> dict[str, Any]:
    """Run the ranks until they are done; see `wals_spark.wals.engine.rank.run` for what is returned.

    A failed attempt is repeated from the last checkpoint when that can help. Attempts are counted from the last
    one that got further, so a long training survives any number of well separated failures.

    Raises
    ------
    WalsSparkError
        See `wals_spark.cluster.barrier.run_barrier`; after ``train.max_attempts`` attempts without progress a
        `TransientError`.
    """
    payload, sweeps = task.to_json(), task.config.sweeps
    attempt, number = 1, 1
    reached = _reached(task)
    while True:
        records = storage.join(task.directory, "attempts", f"{number:03d}")
        storage.remove(records)
        storage.make_directory(records)
        try:
            with _watching(task):
                return json.loads(
                    run_barrier(one_row_per_rank(spark, plan.ranks), plan, rank_main, payload, records)[0]
                )
        except WalsSparkError as error:
            now = _reached(task)
            attempt = 1 if now > reached else attempt
            reached = max(now, reached)
            if not error.retry_helps:
                raise
            if attempt >= task.config.max_attempts:
                raise TransientError(
                    f"training stopped after {attempt} attempts without progress ({number} in all), at half-sweep "
                    f"{reached} of {2 * sweeps}: {error}; run the same command again to go on from there"
                ) from error
            logger.warning("attempt %d failed: %s", number, error)
            logger.warning("starting again from half-sweep %d", reached)
            attempt, number = attempt + 1, number + 1


def rank_main(context: RankContext, payload: str) -> str:
    """What a barrier task runs: join the group, train, return the facts as JSON."""
    task = RankTask.from_json(payload)
    task = replace(task, threads=task.config.threads or context.cpus)
    device = None
    if task.device == "cuda":
        import torch

        device = own_gpu(context.gpus, context.rank)
        torch.cuda.set_device(device)
    try:
        with process_group(
            context.rank, context.size, context.all_gather_text, timeout_s=task.config.timeout_s, cuda_device=device
        ) as group:
            return json.dumps(run(task, group))
    finally:
        if device is not None:
            # A reused worker process must not keep this training's memory.
            torch.cuda.empty_cache()


def _reached(task: RankTask) -> int:
    """Half-sweeps that the status file knows of."""
    return int(storage.read_json(task.status_path)["half_sweep"]) if storage.exists(task.status_path) else 0


@contextmanager
def _watching(task: RankTask) -> Iterator[None]:
    """Show what rank 0 writes into the status file."""
    with Progress("train", 2 * task.config.sweeps, "half-sweeps") as progress:

        def show(status: dict[str, Any]) -> None:
            progress.update(status["half_sweep"], line=True, **_shown(status))

        with following_status(task.status_path, show):
            yield


def _shown(status: dict[str, Any]) -> dict[str, Any]:
    change = status["relative_change"]
    return {
        "side": status["side"],
        "loss": float(status["loss"]),
        "change": f"{change:.2e}" if change is not None else "-",
        "s": status["seconds_per_half_sweep"],
        "cells/s": status["cells_per_s"],
        "memory": f"{status['peak_memory_bytes'] / 2**30:.2f}GiB",
        "eta": f"{status['eta_s']:.0f}s",
    }
