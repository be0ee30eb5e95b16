"""The preflight of a barrier stage: ranks, slots and GPUs checked on the driver, in seconds, with the key to change."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from wals_spark.cluster.profile import executor_gpus, rank_profile
from wals_spark.errors import ConfigError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)

EXECUTORS_WAIT_S = 60.0
SYNC_TIMEOUT = "spark.barrier.sync.timeout"
_WORK = {"train": "training", "fit": "the fit"}


@dataclass(frozen=True)
class BarrierPlan:
    """How a barrier stage will run.

    Attributes
    ----------
    ranks : int
    device : {"cpu", "cuda"}
    profile : ResourceProfile or None
        None = the default: one task per slot.
    local : bool
        All ranks run on this machine.
    """

    ranks: int
    device: str
    profile: Any = None
    local: bool = False


def preflight(
    spark: SparkSession, *, workers: int | None, device: str, section: Literal["train", "fit"] = "train"
) -> BarrierPlan:
    """Decide on ranks, device and profile, or say everything that stands against it.

    Parameters
    ----------
    spark : SparkSession
    workers : int or None
        Ranks asked for; None = every slot, or every GPU.
    device : {"auto", "cpu", "cuda"}
    section : {"train", "fit"}
        Of the configuration, whose keys messages name.

    Returns
    -------
    BarrierPlan

    Raises
    ------
    ConfigError
        All problems at once, each with the configuration key, its value and what to set.
    """
    conf = spark.sparkContext.getConf()
    master = conf.get("spark.master", "")
    local = is_local_master(conf)
    problems = []
    # A local master has no executors to allocate.
    if not local and conf.get("spark.dynamicAllocation.enabled", "false").lower() == "true":
        problems.append(
            "spark.dynamicAllocation.enabled is true, but barrier stages need a fixed set of executors; "
            "set it to false and spark.executor.instances to the number you want"
        )
    if conf.get(SYNC_TIMEOUT) is None:
        logger.warning("%s is not set: a barrier may wait a year for a lost task; set it to 1800", SYNC_TIMEOUT)
    gpus = count_gpus(conf)
    if device == "cuda" and not gpus:
        problems.append(no_gpu_message(conf, section))
    if problems:
        raise ConfigError("; ".join(problems))
    chosen = "cuda" if gpus and device != "cpu" else "cpu"
    profile = rank_profile(spark) if chosen == "cuda" and not local else None
    # All of them, even for fewer workers: with every executor there, Spark spreads the ranks.
    slots = available_slots(spark, profile, wanted=0 if local else max(workers or 1, expected_slots(conf, profile)))
    if chosen == "cuda" and local:
        slots = min(slots, gpus)
    ranks = workers or slots
    if ranks > slots or slots == 0:
        what = "GPUs" if chosen == "cuda" else "task slots"
        raise ConfigError(
            f"{_WORK[section]} needs {max(ranks, 1)} concurrent tasks, but the cluster {master} offers {slots} {what}; "
            f"add executors, set {section}.workers={max(slots, 1)}, or lower spark.task.cpus "
            f"(now {conf.get('spark.task.cpus', '1')})"
        )
    return BarrierPlan(ranks, chosen, profile, local)


def is_local_master(conf: Any) -> bool:
    """Whether the driver's process runs the tasks itself; ``local-cluster`` starts processes as a cluster does."""
    master = conf.get("spark.master", "")
    return bool(master.startswith("local") and not master.startswith("local-cluster"))


def count_gpus(conf: Any) -> int:
    """GPUs of this machine under a local master, of an executor otherwise."""
    return local_gpus() if is_local_master(conf) else executor_gpus(conf)


def no_gpu_message(conf: Any, section: str) -> str:
    """What to say where the key ``device`` of a section is cuda and there is no GPU."""
    found = "nvidia-smi lists none on this machine"
    if not is_local_master(conf):
        found = "spark.executor.resource.gpu.amount is not set"
    return f"{section}.device is cuda, but {found}; set {section}.device=cpu, or give the executors GPUs"


def expected_slots(conf: Any, profile: Any = None) -> int:
    """How many tasks of a profile run at once when every executor that the configuration names has registered.

    Per executor min(cores // a task's cpus, GPUs // a task's GPUs). 1 where the configuration names no number of
    executors.
    """
    cluster = re.fullmatch(r"local-cluster\[\s*(\d+)\s*,\s*(\d+)\s*,\s*\d+\s*\]", conf.get("spark.master", ""))
    instances = cluster[1] if cluster else conf.get("spark.executor.instances")
    if instances is None:
        return 1
    cores = int(conf.get("spark.executor.cores", cluster[2] if cluster else "1"))
    asked = {name: request.amount for name, request in profile.taskResources.items()} if profile else {}
    slots = cores // int(asked.get("cpus", conf.get("spark.task.cpus", "1")))
    gpus = float(asked.get("gpu", conf.get("spark.task.resource.gpu.amount", "0")))
    if gpus > 0:
        slots = min(slots, int(executor_gpus(conf) / gpus))
    return int(instances) * slots


def available_slots(spark: SparkSession, profile: Any, wanted: int) -> int:
    """Tasks that can run at the same time; waits for executors that are still registering."""
    context = spark.sparkContext._jsc.sc()
    manager = context.resourceProfileManager()
    if profile is None:
        java_profile = manager.defaultResourceProfile()
    else:
        java_profile = _java_profile(spark, profile)
        manager.addResourceProfile(java_profile)
    deadline = time.monotonic() + EXECUTORS_WAIT_S
    while True:
        slots = int(context.maxNumConcurrentTasks(java_profile))
        if slots >= wanted or time.monotonic() > deadline:
            return slots
        time.sleep(0.2)


def _java_profile(spark: SparkSession, profile: Any) -> Any:
    # The Java counterpart of a profile that was built before the session is made on first use.
    from pyspark.resource import ExecutorResourceRequests, TaskResourceRequests

    jvm = spark.sparkContext._jvm
    builder = jvm.org.apache.spark.resource.ResourceProfileBuilder()
    tasks = TaskResourceRequests(jvm, profile.taskResources)
    builder.require(tasks._java_task_resource_requests)
    if profile.executorResources:
        builder.require(ExecutorResourceRequests(jvm, profile.executorResources)._java_executor_resource_requests)
        java_profile = builder.build()
    else:
        java_profile = jvm.org.apache.spark.resource.TaskResourceProfile(builder.taskResources())
    return java_profile


def local_gpus() -> int:
    """GPUs of this machine that this process may use; asked without touching CUDA."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([part for part in visible.split(",") if part.strip() not in ("", "-1")])
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=30, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines()) if listed.returncode == 0 else 0
