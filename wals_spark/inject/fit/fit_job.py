"""A fit on the ranks of a barrier stage: the task, the program of a rank, and the driver's part."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from wals_spark import storage
from wals_spark.checkpoints.checkpoint import embedding_values, open_checkpoint
from wals_spark.cluster.barrier import RankContext, run_barrier
from wals_spark.cluster.preflight import BarrierPlan
from wals_spark.cluster.process_group import Group, process_group
from wals_spark.cluster.profile import own_gpu
from wals_spark.errors import InputError, TransientError, WalsSparkError
from wals_spark.heartbeat import following_status
from wals_spark.inject.fit.fit_rows import FitSettings, FitState, FittedRows, FitTexts, FitTokens, fit_rows
from wals_spark.inject.fit.penalty_choice import HeldOutLoss
from wals_spark.inject.fit.softmax_loss import OutputLayer
from wals_spark.inject.fit.states_job import checkpoint_content
from wals_spark.matrix.placement import one_row_per_rank
from wals_spark.mlm.state_files import GENERAL, TRAINING, VALIDATION, list_state_parts, load_states
from wals_spark.progress import Progress

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from wals_spark.mlm.hidden_states import MaskedStates

logger = logging.getLogger(__name__)

FACTORS, RESUME, RESULT, STATUS = "factors.safetensors", "fit.safetensors", "rows.safetensors", "status.json"


@dataclass(frozen=True)
class FitTask:
    """What the ranks do.

    Attributes
    ----------
    states : str
        The directory of the states.
    directory : str
        Reachable by all: factors go in, rows come out; where a fit is, for one that goes on.
    checkpoint : str
        The model, under a path that executors see.
    checkpoint_sha256 : str
        Of its weights, as the states have it.
    settings : FitSettings
    protected : tuple of int
        Ids that never move.
    timeout_s : float
        Longest wait of a rank for the others.
    threads : int or None
        Per rank; None = the task's cpus.
    device : {"cpu", "cuda"}
    """

    states: str
    directory: str
    checkpoint: str
    checkpoint_sha256: str
    settings: FitSettings
    protected: tuple[int, ...]
    timeout_s: float = 1800.0
    threads: int | None = None
    device: str = "cpu"

    def path(self, name: str) -> str:
        """A file of the fit."""
        return storage.join(self.directory, name)

    def to_json(self) -> str:
        """As text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> FitTask:
        """The inverse of `to_json`."""
        data = json.loads(text)
        return cls(**{**data, "settings": FitSettings(**data["settings"]), "protected": tuple(data["protected"])})


def write_factors(task: FitTask, factors: np.ndarray, counts: np.ndarray) -> None:
    """Leave factors (T, k) and counts (T,) of the tokens where the ranks read them."""
    _write_arrays(task.path(FACTORS), {"factors": factors.astype(np.float32), "counts": counts.astype(np.int64)})


def run_fit(spark: SparkSession, task: FitTask, plan: BarrierPlan, max_attempts: int) -> FittedRows:
    """Run the ranks until they are done, again from where they were where that can help.

    Parameters
    ----------
    spark : SparkSession
    task : FitTask
    plan : BarrierPlan
    max_attempts : int

    Returns
    -------
    FittedRows

    Raises
    ------
    WalsSparkError
        See `wals_spark.cluster.barrier.run_barrier`; a `TransientError` after `max_attempts`.
    """
    for attempt in range(1, max_attempts + 1):
        records = task.path(f"attempt-{attempt:03d}")
        storage.remove(records)
        storage.make_directory(records)
        try:
            with _progress(task):
                run_barrier(one_row_per_rank(spark, plan.ranks), plan, fit_rank_main, task.to_json(), records)
            return read_result(task)
        except WalsSparkError as error:
            if not error.retry_helps:
                raise
            if attempt == max_attempts:
                raise TransientError(
                    f"the fit stopped after {attempt} attempts: {error}; run the same command again to go on from there"
                ) from error
            logger.warning("attempt %d failed: %s; starting again from where it was", attempt, error)
    raise AssertionError("max_attempts is at least 1")


def fit_rank_main(context: RankContext, payload: str) -> str:
    """What a barrier task runs: join the group, fit; rank 0 writes the rows."""
    import torch

    task = FitTask.from_json(payload)
    threads, device, cuda = task.threads or context.cpus, "cpu", None
    if task.device == "cuda":
        cuda = own_gpu(context.gpus, context.rank)
        device = f"cuda:{cuda}"
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with process_group(
            context.rank, context.size, context.all_gather_text, timeout_s=task.timeout_s, cuda_device=cuda
        ) as group:
            fit_on_rank(replace(task, threads=threads), group, device)
    finally:
        torch.set_num_threads(before)
        if cuda is not None:
            torch.cuda.empty_cache()
    return ""


def fit_on_rank(task: FitTask, group: Group, device: str) -> FittedRows:
    """The fit of a task on a rank of a group, without Spark.

    Raises
    ------
    InputError
        The checkpoint that this rank sees is not the one of the states.
    """
    if (found := checkpoint_content(task.checkpoint)) != task.checkpoint_sha256:
        raise InputError(
            f"{task.checkpoint} has the hash {found}, the states are of {task.checkpoint_sha256}: the checkpoint has "
            "changed since, or another one lies there on this machine; run `wals-spark states`"
        )
    opened = open_checkpoint(task.checkpoint)
    assert opened.head_bias is not None
    E = embedding_values(opened)
    base = OutputLayer(E, opened.tensors[opened.head_bias].values().astype(np.float32))

    def share(split: str) -> MaskedStates | None:
        parts = list_state_parts(task.states, split)
        return load_states(parts, group.rank, group.size) if parts else None

    training = share(TRAINING)
    assert training is not None
    validation = share(VALIDATION) or training.take(np.zeros(0, np.int64))
    fitted = fit_rows(
        FitTexts(training, validation, share(GENERAL)),
        base,
        _tokens(task, len(E)),
        task.settings,
        group,
        device=device,
        threads=task.threads or 1,
        report=_reporter(task) if group.rank == 0 else None,
        resume=_resume(task),
    )
    if group.rank == 0:
        arrays = {"ids": fitted.ids, "rows": fitted.rows, "bias": fitted.bias}
        _write_arrays(task.path(RESULT), arrays, fitted.facts)
    return fitted


def read_result(task: FitTask) -> FittedRows:
    """What rank 0 wrote."""
    arrays, facts = _read_arrays(task.path(RESULT))
    return FittedRows(arrays["ids"], arrays["rows"], arrays["bias"], facts)


def _tokens(task: FitTask, size: int) -> FitTokens:
    protected = np.array(task.protected, np.int64)
    if task.settings.rows in ("bias", "free"):
        return FitTokens(protected)
    arrays, _ = _read_arrays(task.path(FACTORS))
    factors, counts = np.zeros((size, arrays["factors"].shape[1]), np.float32), np.zeros(size, np.int64)
    factors[: len(arrays["factors"])], counts[: len(arrays["counts"])] = arrays["factors"], arrays["counts"]
    return FitTokens(protected, factors, counts)


def _reporter(task: FitTask) -> Any:
    """Writes, after every iteration, where the fit is."""

    def report(state: FitState) -> None:
        arrays = {"theta": np.ascontiguousarray(state.theta)}
        for number, fit in enumerate(state.tried):
            arrays[f"losses_{number}"] = fit.losses
            if fit.general is not None:
                arrays[f"general_{number}"] = fit.general
        facts = {
            "ridges": [fit.ridge for fit in state.tried],
            "ridge": state.ridge,
            "iteration": state.iteration,
            "value": state.value,
        }
        _write_arrays(task.path(RESUME), arrays, facts)
        storage.write_json(task.path(STATUS), {"penalty": len(state.tried) + 1, **facts})

    return report


def _resume(task: FitTask) -> FitState | None:
    if not storage.exists(task.path(RESUME)):
        return None
    arrays, facts = _read_arrays(task.path(RESUME))
    tried = tuple(
        HeldOutLoss(ridge, arrays[f"losses_{number}"], arrays.get(f"general_{number}"))
        for number, ridge in enumerate(facts["ridges"])
    )
    return FitState(tried, arrays["theta"], facts["ridge"], facts["iteration"], facts["value"])


def _write_arrays(path: str, arrays: dict[str, np.ndarray], facts: dict[str, Any] | None = None) -> None:
    from safetensors.numpy import save

    storage.write_bytes(path, save(arrays, {"facts": json.dumps(facts or {})}))


def _read_arrays(path: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    from safetensors.numpy import load

    content = storage.read_bytes(path)
    length = int.from_bytes(content[:8], "little")
    facts = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["facts"])
    return load(content), facts


@contextmanager
def _progress(task: FitTask) -> Iterator[None]:
    """Show what rank 0 writes into the status file."""
    with Progress("fit", task.settings.iterations, "steps") as progress:

        def show(status: dict[str, Any]) -> None:
            step = min(status["iteration"], task.settings.iterations)
            progress.update(step, line=True, penalty=f"{status['ridge']:.4g}", objective=f"{status['value']:.1f}")

        with following_status(task.path(STATUS), show):
            yield
