"""The states of a sample of sequences, part by part: what a task of Spark does, and the job of all parts.

A part is a run of sequences of one split. It depends on nothing but them, the checkpoint, the maskings and the
precision, so parts that an earlier, killed job left are kept. A worker process loads the model once and keeps it for
the parts after; its weights must have the hash that the driver found.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wals_spark import storage
from wals_spark.checkpoints.checkpoint import weight_files
from wals_spark.checkpoints.raw_tensor import file_sha256
from wals_spark.cluster.profile import own_gpu, rank_profile
from wals_spark.errors import ConfigError, InputError
from wals_spark.heartbeat import Heartbeat, HeartbeatMonitor, time_left
from wals_spark.mlm.data import SpecialIds
from wals_spark.mlm.hidden_states import MaskedStates
from wals_spark.mlm.loss import load_masked_lm
from wals_spark.mlm.masking import Maskings
from wals_spark.mlm.state_encoder import Precision, StateEncoder
from wals_spark.mlm.state_files import (
    SPLITS,
    StatePart,
    part_identity,
    read_sequences,
    read_state_part,
    write_state_part,
)
from wals_spark.mlm.text_sequences import TextSequences
from wals_spark.progress import Progress

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)

SEQUENCES = "sequences.arrow"
"""The sample in a directory of states: tokens, names and splits of its sequences."""


@dataclass(frozen=True)
class StatesJob:
    """What every task must know.

    Attributes
    ----------
    directory : str
        Of the states; it holds the file of sequences.
    scratch : str
        For the tasks' progress.
    fingerprint : str
        Of the stage's output.
    checkpoint : str
        Directory of the checkpoint, under a path that executors see.
    checkpoint_sha256 : str
        `checkpoint_content` of it.
    special : SpecialIds
    maskings : Maskings
    precision : {"fp32", "tf32", "bf16"}
    batch_size : int or None
    """

    directory: str
    scratch: str
    fingerprint: str
    checkpoint: str
    checkpoint_sha256: str
    special: SpecialIds
    maskings: Maskings
    precision: Precision
    batch_size: int | None


@dataclass(frozen=True)
class PlannedPart:
    """Sequences ``start <= i < stop`` of the sample, all of one split: the part of a number."""

    number: int
    split: str
    start: int
    stop: int


def plan_parts(splits: Sequence[str], part_sequences: int) -> list[PlannedPart]:
    """Cut a sample that is sorted by split into parts of at most `part_sequences` sequences of one split."""
    parts: list[PlannedPart] = []
    start = 0
    for split in SPLITS:
        stop = start + splits.count(split)
        assert set(splits[start:stop]) <= {split}, "the sample is not sorted by split"
        for low in range(start, stop, part_sequences):
            parts.append(PlannedPart(len(parts), split, low, min(low + part_sequences, stop)))
        start = stop
    return parts


def part_path(job: StatesJob, planned: PlannedPart) -> str:
    """Where a part is written."""
    return storage.join(job.directory, f"part-{planned.number:05d}.arrow")


def compute_part(
    job: StatesJob,
    planned: PlannedPart,
    *,
    threads: int = 1,
    cuda: int | None = None,
    heartbeat: Heartbeat | None = None,
) -> StatePart:
    """Compute and write a part.

    Parameters
    ----------
    job : StatesJob
    planned : PlannedPart
    threads : int
        Of the processor.
    cuda : int or None
        The number of the GPU to compute on; None for the processor.
    heartbeat : Heartbeat or None
        Told the forward passes done.

    Returns
    -------
    StatePart
    """
    import torch

    torch.set_num_threads(threads)
    encoder = load_encoder(job.checkpoint, job.checkpoint_sha256, job.special, job.precision, job.batch_size, cuda)
    sequences, _ = read_sequences(storage.join(job.directory, SEQUENCES))
    own = sequences.take(np.arange(planned.start, planned.stop))
    states = encoder.states(own, job.maskings, None if heartbeat is None else lambda done: heartbeat.beat(passes=done))
    write_state_part(part_path(job, planned), states, _identity(job, own))
    if heartbeat is not None:
        heartbeat.beat(passes=len(own) * job.maskings.count, last=True)
    return _facts(job, planned, states)


@lru_cache(maxsize=1)
def load_encoder(
    checkpoint: str, sha256: str, special: SpecialIds, precision: Precision, batch_size: int | None, cuda: int | None
) -> StateEncoder:
    """The encoder of a checkpoint; a process keeps the last one, by the content of its weights.

    Parameters
    ----------
    checkpoint : str
        Its directory.
    sha256 : str
        What `checkpoint_content` must find there.
    special : SpecialIds
    precision : {"fp32", "tf32", "bf16"}
    batch_size : int or None
    cuda : int or None
        The number of a GPU; None for the processor.

    Returns
    -------
    StateEncoder

    Raises
    ------
    InputError
        The checkpoint is not on this machine, or has other weights here than on the driver.
    """
    import torch

    if not Path(checkpoint).is_dir():
        raise InputError(
            f"there is no {checkpoint} on this executor: states are computed where the tasks run, so inject.checkpoint "
            "must be a path that every executor sees"
        )
    found = checkpoint_content(checkpoint)
    if found != sha256:
        raise InputError(
            f"{checkpoint} has the content {found} on this executor and {sha256} on the driver: copy it anew"
        )
    device = torch.device("cpu") if cuda is None else torch.device("cuda", cuda)
    model = load_masked_lm(checkpoint).to(device)
    return StateEncoder(model, special, precision=precision, batch_size=batch_size)


def checkpoint_content(directory: str) -> str:
    """A hash of a checkpoint's weights and config.json, 16 hexadecimal digits."""
    files = [Path(directory) / "config.json", *weight_files(Path(directory))]
    return hashlib.sha256("".join(file_sha256(path) for path in files).encode()).hexdigest()[:16]


def run_parts(spark: SparkSession, job: StatesJob, parts: Sequence[PlannedPart], device: str) -> list[StatePart]:
    """Compute the parts that are not there yet, one task for each, and describe them all.

    Parameters
    ----------
    spark : SparkSession
    job : StatesJob
    parts : sequence of PlannedPart
    device : {"auto", "cpu", "cuda"}
        ``states.device``.

    Returns
    -------
    list of StatePart
        In the order of the parts.

    Raises
    ------
    ConfigError
        `device` is cuda and there is no GPU.
    """
    sequences, _ = read_sequences(storage.join(job.directory, SEQUENCES))
    found: dict[int, StatePart] = {}
    for planned in parts:
        own = sequences.take(np.arange(planned.start, planned.stop))
        if part_identity(part_path(job, planned)) == _identity(job, own):
            found[planned.number] = _facts(job, planned, read_state_part(part_path(job, planned)))
    missing = [planned for planned in parts if planned.number not in found]
    if found and missing:
        logger.info("states: %d of %d parts are there from before", len(found), len(parts))
    if missing:
        chosen = choose_device(spark, device)
        with _progress(job, sum(planned.stop - planned.start for planned in missing)):
            for planned, facts in zip(missing, _compute_in_spark(spark, job, missing, chosen), strict=True):
                found[planned.number] = facts
    return [found[planned.number] for planned in parts]


@dataclass(frozen=True)
class Device:
    """Where tasks compute.

    Attributes
    ----------
    kind : {"cpu", "cuda"}
    gpus : int
        Of this machine, where the master is local; else 0.
    profile : pyspark.resource.ResourceProfile or None
        Of tasks that each have a GPU of a cluster.
    """

    kind: str
    gpus: int = 0
    profile: Any = None


def choose_device(spark: SparkSession, wanted: str) -> Device:
    """The device of the tasks: what is wanted, or a GPU where there are any.

    Raises
    ------
    ConfigError
        `wanted` is cuda and there is no GPU.
    """
    from wals_spark.cluster.preflight import count_gpus, is_local_master, no_gpu_message

    conf = spark.sparkContext.getConf()
    gpus = 0 if wanted == "cpu" else count_gpus(conf)
    if wanted == "cuda" and not gpus:
        raise ConfigError(no_gpu_message(conf, "states"))
    if not gpus:
        return Device("cpu")
    return Device("cuda", gpus) if is_local_master(conf) else Device("cuda", 0, rank_profile(spark))


def _compute_in_spark(
    spark: SparkSession, job: StatesJob, parts: Sequence[PlannedPart], device: Device
) -> list[StatePart]:
    """A task for each part; with GPUs of this machine, a task for each GPU."""

    def run(index: int, own: Iterator[PlannedPart]) -> Iterator[StatePart]:
        from pyspark import TaskContext
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()  # a checkpoint's pooler is no part of its masked-LM class
        context = TaskContext.get()
        assert context is not None
        gpu = context.resources().get("gpu")
        cuda = own_gpu(list(gpu.addresses) if gpu else [], index) if device.kind == "cuda" else None
        for planned in own:
            heartbeat = Heartbeat(job.scratch, f"part-{planned.number}")
            yield compute_part(job, planned, threads=context.cpus(), cuda=cuda, heartbeat=heartbeat)

    tasks = min(len(parts), device.gpus or len(parts))
    rdd = spark.sparkContext.parallelize(parts, tasks)
    if device.profile is not None:
        rdd = rdd.withResources(device.profile)
    return rdd.mapPartitionsWithIndex(run).collect()


@contextmanager
def _progress(job: StatesJob, sequences: int) -> Iterator[None]:
    """Show the forward passes done."""
    total = sequences * job.maskings.count

    def show(done: Counter[str], seconds: float) -> None:
        passes = done["passes"]
        progress.update(passes, rate=f"{passes / seconds:.1f}/s", eta=time_left(seconds, passes / total))

    with Progress("states", total, "passes") as progress, HeartbeatMonitor(job.scratch, show):
        yield


def _identity(job: StatesJob, sequences: TextSequences) -> str:
    """What a part's file is made from."""
    digest = hashlib.blake2b(f"{job.fingerprint} {job.checkpoint_sha256}".encode(), digest_size=16)
    for array in (sequences.document, sequences.start, sequences.offsets, sequences.tokens):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _facts(job: StatesJob, planned: PlannedPart, states: MaskedStates) -> StatePart:
    loss = float(states.base_loss.sum())
    return StatePart(part_path(job, planned), planned.split, planned.stop - planned.start, len(states), loss)
