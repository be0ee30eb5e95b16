"""Which resources a rank asks of Spark, and which of them it was given."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def executor_gpus(conf: Any) -> int:
    """GPUs of an executor as configured; 0 without."""
    return int(float(conf.get("spark.executor.resource.gpu.amount", "0")))


def rank_profile(spark: SparkSession) -> Any:
    """A profile of tasks only: one whole GPU and more than half of an executor's cores.

    With more than half of the cores, two ranks never share an executor that has a single GPU. An executor with
    several GPUs shares its cores among them.
    """
    from pyspark.resource import ResourceProfileBuilder, TaskResourceRequests

    conf = spark.sparkContext.getConf()
    cores = int(conf.get("spark.executor.cores", "1"))
    gpus = executor_gpus(conf)
    cpus = cores // 2 + 1 if gpus == 1 else max(1, cores // gpus)
    requests = TaskResourceRequests().cpus(cpus).resource("gpu", 1.0)
    return ResourceProfileBuilder().require(requests).build


def own_gpu(addresses: Sequence[str], partition: int) -> int:
    """The CUDA ordinal of a rank.

    Parameters
    ----------
    addresses : sequence of str
        What Spark assigned; empty in local mode, where the ranks take the GPUs in turn.
    partition : int

    Notes
    -----
    Where CUDA_VISIBLE_DEVICES is set already, addresses count into it, and so do CUDA's ordinals; where it is
    not, the address is the ordinal. A worker process that is reused may have touched CUDA before, so the
    variable is never changed here.
    """
    if not addresses:
        return partition
    address = addresses[0]
    visible = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    return visible.index(address) if address in visible and not address.isdigit() else int(address)
