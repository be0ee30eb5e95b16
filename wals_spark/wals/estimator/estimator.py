"""WALS as a ``pyspark.ml`` estimator, with the parameters, columns and methods of ``pyspark.ml.recommendation.ALS``.

With ``implicitPrefs=False`` it minimises::

    sum_observed (r_ij - u_i.v_j)^2 + regParam (sum_i n_i |u_i|^2 + sum_j n_j |v_j|^2)

and with ``implicitPrefs=True``, c_ij = 1 + alpha |r_ij| and p_ij = 1 where r_ij > 0, else 0::

    sum_all c_ij (p_ij - u_i.v_j)^2 + regParam (sum_i n_i |u_i|^2 + sum_j n_j |v_j|^2)

n_i counting the observed (explicit) or positive (implicit) ratings: MLlib's objectives, MLlib's regParam.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
import uuid
from collections.abc import Sequence
from typing import Any

from pyspark.ml import Estimator
from pyspark.ml.util import MLReadable, MLReader, MLWritable, MLWriter
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from wals_spark import storage
from wals_spark.cluster.preflight import preflight
from wals_spark.config import TrainConfig
from wals_spark.errors import ConfigError
from wals_spark.objective import Objective, make_objective
from wals_spark.tables.base import without_wildcards
from wals_spark.wals.engine.driver import train
from wals_spark.wals.engine.task import RankTask
from wals_spark.wals.estimator.factor_files import FACTS
from wals_spark.wals.estimator.messages import in_own_words
from wals_spark.wals.estimator.model import WALSModel
from wals_spark.wals.estimator.params import PARAMETER_NAMES, EstimatorParams
from wals_spark.wals.estimator.persistence import EstimatorReader, EstimatorWriter
from wals_spark.wals.estimator.ratings import matrix_files, training_facts, write_matrix
from wals_spark.wals.estimator.setters import EstimatorSetters

RESULT_SCHEMA = "token_id int, vector array<float>, bias float, sum double, cells bigint"
"""Of the files that the ranks write."""


class WALS(Estimator["WALSModel"], EstimatorParams, EstimatorSetters, MLReadable["WALS"], MLWritable):
    """Weighted alternating least squares; see the module for the objectives.

    Parameters
    ----------
    rank, maxIter, regParam, implicitPrefs, alpha, userCol, itemCol, ratingCol, seed, coldStartStrategy,
    checkpointInterval, blockSize, predictionCol
        As in ``pyspark.ml.recommendation.ALS``, with the same defaults. Ids are whole numbers, of 64 bits if
        need be. `checkpointInterval` counts sweeps, -1 = only at the end; `blockSize` is the number of items
        multiplied at once when recommending.
    nonnegative
        No factor is negative; for quadratic objectives without biases. It is solved on the processors, in float64.
    numUserBlocks, numItemBlocks, intermediateStorageLevel, finalStorageLevel
        Accepted, without effect.
    tol, objective, objectiveParams, duplicates, numWorkers, numThreads, device, precision, workDir, weightCol
        Ours. `weightCol` names a column of weights w: ``sum_observed w (r - u.v)^2 + regParam (|U|^2 + |V|^2)``, and
        with ``objectiveParams={"rho": ...}`` a weight of unobserved pairs, of target 0, besides; a repeated pair then
        counts with the sum of its weights. `objective` names a preset, of which `objectiveParams` changes fields;
        regParam and alpha then count only where they are set. `workDir` must be reached by every executor; on a
        ``local`` master a temporary directory does.

    Examples
    --------
    >>> model = WALS(rank=20, implicitPrefs=True, userCol="userId", itemCol="movieId").fit(ratings)
    >>> model.recommendForAllUsers(10)
    """

    def __init__(self, **parameters: Any) -> None:
        super().__init__()
        self._initial: WALSModel | None = None
        self.setParams(**parameters)

    def setParams(self, **parameters: Any) -> WALS:
        """Set parameters by name; None leaves a parameter as it is, as in MLlib.

        Raises
        ------
        ConfigError
            A name that is no parameter.
        """
        unknown = sorted(set(parameters) - set(PARAMETER_NAMES))
        if unknown:
            raise ConfigError(
                f"WALS has no parameter {', '.join(unknown)}; expected some of {', '.join(PARAMETER_NAMES)}"
            )
        self._set(**{name: value for name, value in parameters.items() if value is not None})
        return self

    def warmStart(self, model: WALSModel | None) -> WALS:
        """Start from the item factors of a model; items it does not know start at random."""
        self._initial = model
        return self

    @property
    def initialModel(self) -> WALSModel | None:
        """The model of `warmStart`; saved and loaded with the estimator."""
        return self._initial

    def write(self) -> MLWriter:
        return EstimatorWriter(self)

    @classmethod
    def read(cls) -> MLReader[WALS]:
        return EstimatorReader(cls)

    def copy(self, extra: Any = None) -> WALS:
        copied = super().copy(extra)
        copied._initial = self._initial
        return copied

    def make_objective(self) -> Objective:
        """The objective that the parameters describe."""
        with in_own_words():
            return self._make_objective()

    def _make_objective(self) -> Objective:
        if self.isSet(self.weightCol) and not self.isDefined(self.objective):
            if self.getImplicitPrefs():
                raise ConfigError("weightCol and implicitPrefs=True are both set; preferences get weights from alpha")
            given = dict(self.getOrDefault(self.objectiveParams))
            return make_objective("custom", **{"regularization": self.getRegParam(), **given})
        if self.isDefined(self.objective):
            given = dict(self.getOrDefault(self.objectiveParams))
            if self.isSet(self.regParam):
                given["regularization"] = self.getRegParam()
            if self.isSet(self.alpha):
                given["alpha"] = self.getAlpha()
            return make_objective(self.getOrDefault(self.objective), **given)
        ridge = {"regularization": self.getRegParam(), "regularization_exponent": 1.0, "unobserved_regularize": False}
        if self.getImplicitPrefs():
            return make_objective("implicit", alpha=self.getAlpha(), **ridge)
        return make_objective("explicit", **ridge)

    def _fit(self, dataset: DataFrame) -> WALSModel:
        self.check()
        spark = dataset.sparkSession
        objective = self.make_objective()
        directory = storage.join(_work_directory(self, spark), f"{self.uid}-{uuid.uuid4().hex[:8]}")
        users, items = write_matrix(self, dataset, directory)
        shape = (users.count(), items.count())
        workers = self.getOrDefault(self.numWorkers) or None
        initial = _write_initial(self._initial, items, self, directory)

        def ids_of(side: str, numbers: Sequence[int]) -> dict[int, Any]:
            named = users if side == "row" else items
            return {row["number"]: row["id"] for row in named.where(F.col("number").isin(*numbers)).collect()}

        with in_own_words(ids_of):
            placement = preflight(spark, workers=workers, device=self.getOrDefault(self.device))
            task = self._task(directory, shape, objective, placement.device, initial)
            result = train(spark, task, placement)
        for side, ids in (("row", users), ("col", items)):
            paths = [entry["path"] for entry in result["files"] if entry["side"] == side]
            vectors = spark.read.schema(RESULT_SCHEMA).parquet(*map(without_wildcards, paths))
            named = vectors.join(ids, vectors["token_id"] == ids["number"])
            columns = ["id", F.col("vector").alias("features"), "bias", "sum", "cells"]
            named.select(*columns).write.parquet(storage.join(directory, side))
        for name in ("training", "matrix", "initial"):
            storage.remove(storage.join(directory, name))
        facts = {"duplicates": task.duplicates, "nonnegative": task.nonnegative, "observed": result["nnz"]}
        facts |= {name: result[name] for name in ("constant", "total", "log_means")}
        storage.write_json(storage.join(directory, FACTS), {**training_facts(self, dataset), **facts})
        model = WALSModel(directory, self.getRank(), objective, result["losses"])
        model._resetUid(self.uid)
        return self._copyValues(model)

    def _task(
        self, directory: str, shape: tuple[int, int], objective: Objective, device: str, initial: str | None
    ) -> RankTask:
        every = self.getCheckpointInterval()
        config = TrainConfig(
            objective=objective.name,
            k=self.getRank(),
            sweeps=max(1, self.getMaxIter()),
            tolerance=self.getOrDefault(self.tol),
            threads=self.getOrDefault(self.numThreads) or None,
            precision=self.getOrDefault(self.precision),
            checkpoint_every=2 * every if every > 0 else max(1, 2 * self.getMaxIter()),
        )
        return RankTask(
            files=matrix_files(directory),
            value="value",
            shape=shape,
            symmetric=False,
            unit=1,
            objective=objective,
            config=config,
            seed=self.getSeed(),
            directory=storage.join(directory, "training"),
            device=device,
            canonical=False,
            duplicates=_duplicates(self),
            signed=True,
            weight="weight" if self.isSet(self.weightCol) else None,
            start="positive" if self.getNonnegative() else "unit",
            first="col" if initial is None else "row",
            initial=initial,
            start_only=self.getMaxIter() == 0,
            nonnegative=self.getNonnegative(),
        )


def _duplicates(estimator: WALS) -> str:
    """What becomes of repeated pairs; with weights, keeping them is the same as summing them."""
    chosen = str(estimator.getOrDefault(estimator.duplicates))
    return "sum" if chosen == "keep" and estimator.isSet(estimator.weightCol) else chosen


def _work_directory(estimator: WALS, spark: SparkSession) -> str:
    if estimator.isDefined(estimator.workDir):
        return storage.absolute(estimator.getOrDefault(estimator.workDir))
    checkpoints = spark.sparkContext._jsc.sc().getCheckpointDir()
    if checkpoints.isDefined():
        return str(checkpoints.get())
    master = spark.sparkContext.master
    if not master.startswith("local"):
        raise ConfigError(
            f"workDir is not set, and the executors of {master} cannot be assumed to reach a directory of this "
            "machine; set workDir, or SparkContext.setCheckpointDir, to a shared directory"
        )
    directory = tempfile.mkdtemp(prefix="wals-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def _write_initial(model: WALSModel | None, items: DataFrame, estimator: WALS, directory: str) -> str | None:
    if model is None:
        return None
    rank = estimator.getRank()
    if model.rank != rank:
        raise ConfigError(f"warm start: the model has rank {model.rank}, the estimator {rank}; use one rank for both")
    path = storage.join(directory, "initial")
    known = model.itemFactors.join(items, "id")
    vector = F.col("features")
    if estimator.getNonnegative():
        vector = F.transform(vector, lambda number: F.greatest(number, F.lit(0.0).cast("float")))
    known.select(F.col("number").cast("bigint").alias("id"), vector.alias("vector")).write.parquet(path)
    return path
