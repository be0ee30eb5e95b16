"""Parameters of the estimator and of its model: those of ``pyspark.ml.recommendation.ALS``, and ours."""

# ruff: noqa: N815  # MLlib's parameter names

from __future__ import annotations

from typing import Any

from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import (
    HasBlockSize,
    HasCheckpointInterval,
    HasMaxIter,
    HasPredictionCol,
    HasRegParam,
    HasSeed,
    HasWeightCol,
)

from wals_spark.errors import ConfigError

MAX_RANK = 1024
STORAGE_LEVELS = (
    "DISK_ONLY", "DISK_ONLY_2", "DISK_ONLY_3", "MEMORY_ONLY", "MEMORY_ONLY_2", "MEMORY_ONLY_SER", "MEMORY_ONLY_SER_2",
    "MEMORY_AND_DISK", "MEMORY_AND_DISK_2", "MEMORY_AND_DISK_SER", "MEMORY_AND_DISK_SER_2", "OFF_HEAP",
)  # fmt: skip
CHOICES = {
    "duplicates": ("keep", "sum", "refuse"),
    "device": ("auto", "cpu", "cuda"),
    "precision": ("float32", "float64"),
    "intermediateStorageLevel": STORAGE_LEVELS,
    "finalStorageLevel": ("NONE", *STORAGE_LEVELS),
}
LEAST = {
    "rank": 1, "maxIter": 0, "blockSize": 1, "numUserBlocks": 1, "numItemBlocks": 1, "regParam": 0.0, "alpha": 0.0,
    "tol": 0.0, "numWorkers": 0, "numThreads": 0,
}  # fmt: skip


class ModelParams(HasPredictionCol, HasBlockSize):
    """Parameters of the estimator and of its model."""

    userCol: Param[str] = Param(
        Params._dummy(), "userCol", "column of user ids, whole numbers", TypeConverters.toString
    )
    itemCol: Param[str] = Param(
        Params._dummy(), "itemCol", "column of item ids, whole numbers", TypeConverters.toString
    )
    coldStartStrategy: Param[str] = Param(
        Params._dummy(), "coldStartStrategy", "rows of unknown users or items: nan or drop", TypeConverters.toString
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(
            userCol="user", itemCol="item", predictionCol="prediction", coldStartStrategy="nan", blockSize=4096
        )

    def getUserCol(self) -> str:
        return str(self.getOrDefault(self.userCol))

    def getItemCol(self) -> str:
        return str(self.getOrDefault(self.itemCol))

    def getColdStartStrategy(self) -> str:
        return str(self.getOrDefault(self.coldStartStrategy))


class EstimatorParams(ModelParams, HasMaxIter, HasRegParam, HasCheckpointInterval, HasSeed, HasWeightCol):
    """Parameters of the estimator alone."""

    rank: Param[int] = Param(Params._dummy(), "rank", "number of factors", TypeConverters.toInt)
    ratingCol: Param[str] = Param(
        Params._dummy(), "ratingCol", "column of ratings; empty = every rating is 1", TypeConverters.toString
    )
    implicitPrefs: Param[bool] = Param(
        Params._dummy(), "implicitPrefs", "ratings are confidences in a preference", TypeConverters.toBoolean
    )
    alpha: Param[float] = Param(Params._dummy(), "alpha", "implicit: confidence 1 + alpha r", TypeConverters.toFloat)
    nonnegative: Param[bool] = Param(Params._dummy(), "nonnegative", "no factor is negative", TypeConverters.toBoolean)
    numUserBlocks: Param[int] = Param(
        Params._dummy(), "numUserBlocks", "accepted for MLlib's sake; ranks balance themselves", TypeConverters.toInt
    )
    numItemBlocks: Param[int] = Param(
        Params._dummy(), "numItemBlocks", "accepted for MLlib's sake; ranks balance themselves", TypeConverters.toInt
    )
    intermediateStorageLevel: Param[str] = Param(
        Params._dummy(), "intermediateStorageLevel", "accepted for MLlib's sake", TypeConverters.toString
    )
    finalStorageLevel: Param[str] = Param(
        Params._dummy(), "finalStorageLevel", "accepted for MLlib's sake", TypeConverters.toString
    )
    tol: Param[float] = Param(
        Params._dummy(),
        "tol",
        "stop when a sweep lowers the loss by less, relatively; 0 = never",
        TypeConverters.toFloat,
    )
    objective: Param[str] = Param(
        Params._dummy(), "objective", "preset instead of implicitPrefs, see docs/objectives.md", TypeConverters.toString
    )
    objectiveParams: Param[dict[str, Any]] = Param(
        Params._dummy(), "objectiveParams", "fields of the objective that differ from the preset"
    )
    duplicates: Param[str] = Param(
        Params._dummy(), "duplicates", "repeated (user, item): keep (as MLlib), sum or refuse", TypeConverters.toString
    )
    numWorkers: Param[int] = Param(Params._dummy(), "numWorkers", "ranks; 0 = every slot or GPU", TypeConverters.toInt)
    numThreads: Param[int] = Param(
        Params._dummy(), "numThreads", "CPU threads per rank; 0 = the task's cpus", TypeConverters.toInt
    )
    device: Param[str] = Param(Params._dummy(), "device", "auto, cpu or cuda", TypeConverters.toString)
    precision: Param[str] = Param(Params._dummy(), "precision", "float32 or float64", TypeConverters.toString)
    workDir: Param[str] = Param(
        Params._dummy(), "workDir", "directory that all executors reach, for the matrix, checkpoints and factors",
        TypeConverters.toString,
    )  # fmt: skip

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(
            rank=10, maxIter=10, regParam=0.1, ratingCol="rating", implicitPrefs=False, alpha=1.0, nonnegative=False,
            numUserBlocks=10, numItemBlocks=10, intermediateStorageLevel="MEMORY_AND_DISK",
            finalStorageLevel="MEMORY_AND_DISK", checkpointInterval=10, seed=0, tol=0.0, duplicates="keep",
            numWorkers=0, numThreads=0, device="auto", precision="float32", objectiveParams={},
        )  # fmt: skip

    def getRank(self) -> int:
        return int(self.getOrDefault(self.rank))

    def getRatingCol(self) -> str:
        return str(self.getOrDefault(self.ratingCol))

    def getImplicitPrefs(self) -> bool:
        return bool(self.getOrDefault(self.implicitPrefs))

    def getAlpha(self) -> float:
        return float(self.getOrDefault(self.alpha))

    def getNonnegative(self) -> bool:
        return bool(self.getOrDefault(self.nonnegative))

    def getNumUserBlocks(self) -> int:
        return int(self.getOrDefault(self.numUserBlocks))

    def getNumItemBlocks(self) -> int:
        return int(self.getOrDefault(self.numItemBlocks))

    def getIntermediateStorageLevel(self) -> str:
        return str(self.getOrDefault(self.intermediateStorageLevel))

    def getFinalStorageLevel(self) -> str:
        return str(self.getOrDefault(self.finalStorageLevel))

    def check(self) -> None:
        """Refuse values that MLlib refuses, and those of our own parameters that mean nothing.

        Raises
        ------
        ConfigError
            The first such parameter, its value, and what was expected.
        """
        for name, known in CHOICES.items():
            value = self.getOrDefault(name)
            if value not in known:
                raise ConfigError(f"{name} is {value!r}, expected one of {', '.join(known)}")
        check_cold_start(self.getColdStartStrategy())
        for name, least in LEAST.items():
            value = self.getOrDefault(name)
            if not value >= least:  # not a number is refused too
                raise ConfigError(f"{name} is {value}, expected {least} or more")
        if self.getCheckpointInterval() != -1 and self.getCheckpointInterval() < 1:
            raise ConfigError(f"checkpointInterval is {self.getCheckpointInterval()}, expected -1, or 1 or more")
        if self.getRank() > MAX_RANK:
            raise ConfigError(f"rank is {self.getRank()}, expected at most {MAX_RANK}")


def check_cold_start(value: str) -> None:
    """`ConfigError` for a strategy that MLlib does not know; case does not matter, as there."""
    if value.lower() not in ("nan", "drop"):
        raise ConfigError(f"coldStartStrategy is {value!r}, expected one of nan, drop")


PARAMETER_NAMES = (
    "rank", "maxIter", "regParam", "numUserBlocks", "numItemBlocks", "implicitPrefs", "alpha", "userCol", "itemCol",
    "seed", "ratingCol", "nonnegative", "checkpointInterval", "intermediateStorageLevel", "finalStorageLevel",
    "coldStartStrategy", "blockSize", "predictionCol", "tol", "objective", "objectiveParams", "duplicates",
    "numWorkers", "numThreads", "device", "precision", "workDir", "weightCol",
)  # fmt: skip
"""What `WALS` takes by name."""
