"""WALS as a ``pyspark.ml`` estimator, with the parameters, columns and methods of ``pyspark.ml.recommendation.ALS``.

With ``implicitPrefs=False`` it minimises::

    sum_observed (r_ij - u_i.v_j)^2 + regParam (sum_i n_i |u_i|^2 + sum_j n_j |v_j|^2)

and with ``implicitPrefs=True``, c_ij = 1 + alpha |r_ij| and p_ij = 1 where r_ij > 0, else 0::

    sum_all c_ij (p_ij - u_i.v_j)^2 + regParam (sum_i n_i |u_i|^2 + sum_j n_j |v_j|^2)

n_i counting the observed (explicit) or positive (implicit) ratings: MLlib's objectives, MLlib's regParam.
"""

# ruff: noqa: N815  # MLlib's parameter names

from __future__ import annotations

import atexit
import logging
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.ml import Estimator, Model
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
from pyspark.ml.util import (
    DefaultParamsReadable,
    DefaultParamsReader,
    DefaultParamsWritable,
    DefaultParamsWriter,
    MLReadable,
    MLReader,
    MLWritable,
    MLWriter,
)
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from wals_spark import storage
from wals_spark.cluster.preflight import preflight
from wals_spark.errors import ConfigError, InputError
from wals_spark.factors.foldin import fold_in
from wals_spark.factors.top_k import top_k
from wals_spark.matrix.csr import build_csr
from wals_spark.matrix.list_column import lists_of_length, lists_to_matrix, matrix_to_lists
from wals_spark.objective import Marginals, Objective, make_objective
from wals_spark.wals.engine.driver import train
from wals_spark.wals.engine.rank import check_shape
from wals_spark.wals.engine.task import RankTask

logger = logging.getLogger(__name__)

FACTS = "training.json"


class _ModelParams(HasPredictionCol, HasBlockSize):
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


class _EstimatorParams(_ModelParams, HasMaxIter, HasRegParam, HasCheckpointInterval, HasSeed, HasWeightCol):
    """Parameters of the estimator alone."""

    rank: Param[int] = Param(Params._dummy(), "rank", "number of factors", TypeConverters.toInt)
    ratingCol: Param[str] = Param(
        Params._dummy(), "ratingCol", "column of ratings; empty = every rating is 1", TypeConverters.toString
    )
    implicitPrefs: Param[bool] = Param(
        Params._dummy(), "implicitPrefs", "ratings are confidences in a preference", TypeConverters.toBoolean
    )
    alpha: Param[float] = Param(Params._dummy(), "alpha", "implicit: confidence 1 + alpha r", TypeConverters.toFloat)
    nonnegative: Param[bool] = Param(Params._dummy(), "nonnegative", "must be False", TypeConverters.toBoolean)
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


_PARAMETERS = (
    "rank", "maxIter", "regParam", "numUserBlocks", "numItemBlocks", "implicitPrefs", "alpha", "userCol", "itemCol",
    "seed", "ratingCol", "nonnegative", "checkpointInterval", "intermediateStorageLevel", "finalStorageLevel",
    "coldStartStrategy", "blockSize", "predictionCol", "tol", "objective", "objectiveParams", "duplicates",
    "numWorkers", "numThreads", "device", "precision", "workDir", "weightCol",
)  # fmt: skip


class WALS(Estimator["WALSModel"], _EstimatorParams, DefaultParamsReadable["WALS"], DefaultParamsWritable):
    """Weighted alternating least squares; see the module for the objectives.

    Parameters
    ----------
    rank, maxIter, regParam, implicitPrefs, alpha, userCol, itemCol, ratingCol, seed, coldStartStrategy,
    checkpointInterval, blockSize, predictionCol
        As in ``pyspark.ml.recommendation.ALS``, with the same defaults. Ids are whole numbers, of 64 bits if
        need be. `checkpointInterval` counts sweeps, -1 = only at the end; `blockSize` is the number of items
        multiplied at once when recommending.
    nonnegative
        True is refused.
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
        """Set parameters by name."""
        unknown = sorted(set(parameters) - set(_PARAMETERS))
        if unknown:
            raise ConfigError(f"WALS has no parameter {', '.join(unknown)}; expected some of {', '.join(_PARAMETERS)}")
        self._set(**parameters)
        return self

    def warmStart(self, model: WALSModel | None) -> WALS:
        """Start from the item factors of a model; items it does not know start at random."""
        self._initial = model
        return self

    def copy(self, extra: Any = None) -> WALS:
        copied = super().copy(extra)
        copied._initial = self._initial
        return copied

    def make_objective(self) -> Objective:
        """The objective that the parameters describe."""
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

    def _check(self) -> None:
        if self.getOrDefault(self.nonnegative):
            raise ConfigError("nonnegative=True is not supported by WALS; set it to False, or use pyspark's ALS for it")
        for name, known in (
            ("coldStartStrategy", ("nan", "drop")),
            ("duplicates", ("keep", "sum", "refuse")),
            ("device", ("auto", "cpu", "cuda")),
            ("precision", ("float32", "float64")),
        ):
            value = self.getOrDefault(name)
            if value not in known:
                raise ConfigError(f"{name} is {value!r}, expected one of {', '.join(known)}")
        for name in ("rank", "maxIter", "blockSize"):
            if self.getOrDefault(name) < 1:
                raise ConfigError(f"{name} is {self.getOrDefault(name)}, expected 1 or more")
        if self.getRank() > 1024:
            raise ConfigError(f"rank is {self.getRank()}, expected at most 1024")

    def _fit(self, dataset: DataFrame) -> WALSModel:
        self._check()
        spark = dataset.sparkSession
        objective = self.make_objective()
        directory = storage.join(_work_directory(self, spark), f"{self.uid}-{uuid.uuid4().hex[:8]}")
        users, items = _write_matrix(self, dataset, directory)
        shape = (users.count(), items.count())
        check_shape(self.getRank(), shape)
        workers = self.getOrDefault(self.numWorkers) or None
        placement = preflight(spark, workers=workers, device=self.getOrDefault(self.device))
        matrix = storage.join(directory, "matrix")
        files = tuple(
            storage.join(matrix, info.path.rpartition("/")[2])
            for info in storage.list_files(matrix)
            if info.path.endswith(".parquet")
        )
        every = self.getCheckpointInterval()
        task = RankTask(
            files=files,
            value="value",
            shape=shape,
            symmetric=False,
            unit=1,
            objective=objective,
            k=self.getRank(),
            sweeps=self.getMaxIter(),
            tolerance=self.getOrDefault(self.tol),
            seed=self.getSeed(),
            directory=storage.join(directory, "training"),
            precision=self.getOrDefault(self.precision),
            gauge_power=None,
            device=placement.device,
            checkpoint_every=2 * every if every > 0 else 2 * self.getMaxIter(),
            duplicates=_duplicates(self),
            signed=True,
            weight="weight" if self.isSet(self.weightCol) else None,
            start="positive",
            initial=_write_initial(self._initial, items, self.getRank(), directory),
        )
        result = train(spark, task, placement, threads=self.getOrDefault(self.numThreads) or None)
        for side, ids in (("row", users), ("col", items)):
            paths = [entry["path"] for entry in result["files"] if entry["side"] == side]
            vectors = spark.read.schema("token_id int, vector array<float>, bias float").parquet(*paths)
            named = vectors.join(ids, vectors["token_id"] == ids["number"])
            named.select("id", F.col("vector").alias("features"), "bias").write.parquet(storage.join(directory, side))
        for name in ("training", "matrix", "initial"):
            storage.remove(storage.join(directory, name))
        storage.write_json(storage.join(directory, FACTS), {"ratingCol": self.getRatingCol()})
        return self._copyValues(WALSModel(directory, self.getRank(), objective, result["losses"]))


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


def _ids(column: str, dataset: DataFrame) -> Any:
    """The ids of a column as bigint; anything that is not a whole number stops the job with its value."""
    kind = dict(dataset.dtypes).get(column)
    if kind is None:
        raise InputError(f"the data has no column {column}; it has {', '.join(dataset.columns)}")
    if kind not in ("tinyint", "smallint", "int", "bigint", "float", "double") and not kind.startswith("decimal"):
        raise InputError(
            f"column {column} is {kind}; ids must be whole numbers (number them, for example with StringIndexer)"
        )
    whole = F.col(column).cast("bigint")
    message = F.concat(F.lit(f"WALS: {column} holds "), F.coalesce(F.col(column).cast("string"), F.lit("null")))
    expected = F.concat(message, F.lit(", expected whole numbers"))
    return F.when(whole.isNotNull() & (whole == F.col(column)), whole).otherwise(F.raise_error(expected).cast("bigint"))


def _known(column: str) -> Any:
    """The ids of a column as bigint; null for what cannot be an id, which is as unknown as an unseen id."""
    whole = F.col(column).cast("bigint")
    return F.when(whole == F.col(column), whole)


def _write_matrix(estimator: WALS, dataset: DataFrame, directory: str) -> tuple[DataFrame, DataFrame]:
    """Write the cells with dense numbers in place of ids; returns (id, number) of users and items."""
    rating = estimator.getRatingCol()
    if rating and rating not in dataset.columns:
        raise InputError(
            f"the data has no column {rating}; it has {', '.join(dataset.columns)} (ratingCol='' = all are 1)"
        )
    columns = {"value": _finite(rating)} if rating else {"value": F.lit(1.0)}
    if estimator.isSet(estimator.weightCol):
        weight = estimator.getWeightCol()
        if weight not in dataset.columns:
            raise InputError(f"the data has no column {weight}; it has {', '.join(dataset.columns)}")
        columns["weight"] = _finite(weight, least=0.0)
    cells = dataset.select(
        _ids(estimator.getUserCol(), dataset).alias("user"),
        _ids(estimator.getItemCol(), dataset).alias("item"),
        *(column.alias(name) for name, column in columns.items()),
    )
    raw = storage.join(directory, "raw")
    spark = dataset.sparkSession
    try:
        cells.write.parquet(raw)
    except Exception as error:
        message = str(error)
        if "WALS: " in message:
            raise InputError(message[message.index("WALS: ") + 6 :].splitlines()[0]) from None
        raise
    schema = ", ".join(["user bigint, item bigint", *(f"{name} double" for name in columns)])
    cells = spark.read.schema(schema).parquet(raw)
    numbered = []
    for name in ("user", "item"):
        distinct = cells.select(F.col(name).alias("id")).distinct()
        # One partition numbers the distinct ids; ten million of them are 80 MB.
        number = F.row_number().over(Window.orderBy("id")) - 1
        path = storage.join(directory, f"{name}-ids")
        distinct.select("id", number.alias("number")).write.parquet(path)
        numbered.append(spark.read.schema("id bigint, number int").parquet(path))
    users, items = numbered
    matrix = (
        cells.join(users.select(F.col("id").alias("user"), F.col("number").alias("row_id")), "user")
        .join(items.select(F.col("id").alias("item"), F.col("number").alias("col_id")), "item")
        .select("row_id", "col_id", *columns)
    )
    matrix.write.parquet(storage.join(directory, "matrix"))
    storage.remove(raw)
    return users, items


def _finite(column: str, least: float = float("-inf")) -> Any:
    """A column as double; anything that is not finite, or below `least`, stops the job with its value."""
    value = F.col(column).cast("double")
    shown = F.coalesce(value.cast("string"), F.lit("null"))
    bad = F.raise_error(F.concat(F.lit(f"WALS: {column} holds "), shown)).cast("double")
    good = value.isNotNull() & ~F.isnan(value) & (F.abs(value) < float("inf")) & (value >= least)
    return F.when(good, value).otherwise(bad)


def _write_initial(model: WALSModel | None, items: DataFrame, rank: int, directory: str) -> str | None:
    if model is None:
        return None
    if model.rank != rank:
        raise ConfigError(f"warm start: the model has rank {model.rank}, the estimator {rank}; use one rank for both")
    path = storage.join(directory, "initial")
    known = model.itemFactors.join(items, "id")
    known.select(F.col("number").cast("bigint").alias("id"), F.col("features").alias("vector")).write.parquet(path)
    return path


class WALSModel(Model, _ModelParams, MLReadable["WALSModel"], MLWritable):
    """Factors of users and items.

    Attributes
    ----------
    rank : int
    objective : Objective
        That was minimised.
    losses : list of float
        Its value after each half-sweep.
    """

    def __init__(
        self, directory: str = "", rank: int = 0, objective: Objective | None = None, losses: Any = ()
    ) -> None:
        super().__init__()
        self._directory = directory
        self.rank = rank
        self.objective = objective
        self.losses = list(losses)

    def _factors(self, side: str) -> DataFrame:
        spark = SparkSession.active()
        schema = "id bigint, features array<float>, bias float"
        return spark.read.schema(schema).parquet(storage.join(self._directory, side))

    @property
    def userFactors(self) -> DataFrame:
        """Columns ``id`` and ``features``."""
        return self._factors("row").select("id", "features")

    @property
    def itemFactors(self) -> DataFrame:
        """Columns ``id`` and ``features``."""
        return self._factors("col").select("id", "features")

    def setColdStartStrategy(self, value: str) -> WALSModel:
        return self._set(coldStartStrategy=value)

    def setPredictionCol(self, value: str) -> WALSModel:
        return self._set(predictionCol=value)

    def setUserCol(self, value: str) -> WALSModel:
        return self._set(userCol=value)

    def setItemCol(self, value: str) -> WALSModel:
        return self._set(itemCol=value)

    def _transform(self, dataset: DataFrame) -> DataFrame:
        user, item = self.getUserCol(), self.getItemCol()
        left = self._factors("row").select(
            F.col("id").alias("_user"), F.col("features").alias("_u"), F.col("bias").alias("_b")
        )
        right = self._factors("col").select(
            F.col("id").alias("_item"), F.col("features").alias("_v"), F.col("bias").alias("_c")
        )
        products = F.zip_with("_u", "_v", lambda u, v: u.cast("double") * v)
        score = F.aggregate(products, F.lit(0.0), lambda total, product: total + product) + F.col("_b") + F.col("_c")
        joined = dataset.join(left, _known(user) == F.col("_user"), "left")
        joined = joined.join(right, _known(item) == F.col("_item"), "left")
        prediction = F.coalesce(score, F.lit(float("nan"))).cast("float")
        result = joined.select(*[dataset[name] for name in dataset.columns], prediction.alias(self.getPredictionCol()))
        if self.getColdStartStrategy() == "drop":
            result = result.where(~F.isnan(self.getPredictionCol()))
        return result

    def recommendForAllUsers(self, numItems: int) -> DataFrame:
        """The best `numItems` items of every user: (user, array of (item, rating))."""
        return self._recommend("row", self._factors("row"), numItems)

    def recommendForAllItems(self, numUsers: int) -> DataFrame:
        """The best `numUsers` users of every item: (item, array of (user, rating))."""
        return self._recommend("col", self._factors("col"), numUsers)

    def recommendForUserSubset(self, dataset: DataFrame, numItems: int) -> DataFrame:
        """`recommendForAllUsers` for the users of a column of `dataset`; unknown ones are left out."""
        return self._recommend("row", self._subset("row", dataset, self.getUserCol()), numItems)

    def recommendForItemSubset(self, dataset: DataFrame, numUsers: int) -> DataFrame:
        """`recommendForAllItems` for the items of a column of `dataset`; unknown ones are left out."""
        return self._recommend("col", self._subset("col", dataset, self.getItemCol()), numUsers)

    def _subset(self, side: str, dataset: DataFrame, column: str) -> DataFrame:
        wanted = dataset.select(_ids(column, dataset).alias("id")).distinct()
        return self._factors(side).join(wanted, "id", "left_semi")

    def _recommend(self, side: str, queries: DataFrame, count: int) -> DataFrame:
        if count < 1:
            raise ConfigError(f"the number of recommendations is {count}, expected 1 or more")
        names = (self.getUserCol(), self.getItemCol())
        own, other = names if side == "row" else names[::-1]
        path, block = (
            storage.join(self._directory, "col" if side == "row" else "row"),
            self.getOrDefault(self.blockSize),
        )
        schema = T.StructType(
            [
                T.StructField(own, T.LongType()),
                T.StructField(
                    "recommendations",
                    T.ArrayType(
                        T.StructType([T.StructField(other, T.LongType()), T.StructField("rating", T.FloatType())])
                    ),
                ),
            ]
        )

        def recommend(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            # The other side is read once per task: items x rank x 4 bytes.
            ids, vectors, bias = read_factors(path)
            items = np.hstack([vectors, bias[:, None], np.ones((len(ids), 1), np.float32)])
            for batch in batches:
                if not batch.num_rows:
                    continue
                own_ids, own_vectors, own_bias = factor_arrays(pa.Table.from_batches([batch]))
                users = np.hstack([own_vectors, np.ones((len(own_ids), 1), np.float32), own_bias[:, None]])
                numbers, ratings = top_k(users, items, min(count, len(items)), block=block)
                pairs = pa.StructArray.from_arrays(
                    [pa.array(ids[numbers].reshape(-1)), pa.array(ratings.reshape(-1))], [other, "rating"]
                )
                lists = lists_of_length(pairs, numbers.shape[1], len(users))
                yield pa.RecordBatch.from_arrays([pa.array(own_ids), lists], [own, "recommendations"])

        return queries.select("id", "features", "bias").mapInArrow(recommend, schema)

    def foldInUsers(self, dataset: DataFrame) -> DataFrame:
        """Exact factors of users, old or new, from their *whole* history: (id, features).

        Parameters
        ----------
        dataset : DataFrame
            The columns of the training; items that the model does not know are left out.
        """
        user, item, rating = self.getUserCol(), self.getItemCol(), self._rating_column
        value = F.col(rating).cast("double") if rating else F.lit(1.0)
        cells = dataset.select(
            _ids(user, dataset).alias("user"), _ids(item, dataset).alias("item"), value.alias("value")
        ).repartition("user")
        path, objective = storage.join(self._directory, "col"), self._objective()

        def solve(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            tables = [pa.Table.from_batches([batch]) for batch in batches if batch.num_rows]
            if not tables:
                return
            table = pa.concat_tables(tables)
            ids, vectors, bias = read_factors(path)
            order = np.argsort(ids)
            ids, vectors, bias = ids[order], vectors[order], bias[order]
            items = table["item"].to_numpy()
            at = np.clip(np.searchsorted(ids, items), 0, len(ids) - 1)
            known = ids[at] == items
            users, number = np.unique(table["user"].to_numpy(), return_inverse=True)
            rows = build_csr(
                number[known].astype(np.int32),
                at[known].astype(np.int32),
                table["value"].to_numpy()[known],
                len(users),
                duplicates="keep",
            )
            ones = np.ones(len(ids))
            marginals = Marginals(ones, ones, ones.astype(np.int64), ones.astype(np.int64))
            u, _ = fold_in(rows, vectors, objective, marginals, c=bias)
            columns = [pa.array(users), matrix_to_lists(u.astype(np.float32))]
            yield pa.RecordBatch.from_arrays(columns, ["id", "features"])

        return cells.mapInArrow(solve, "id bigint, features array<float>")

    def _objective(self) -> Objective:
        assert self.objective is not None
        if self.objective.popularity_exponent != 0 or self.objective.target == "pmi":
            raise ConfigError(
                f"fold-in with the objective {self.objective.name!r} needs the marginals of the training; "
                "use wals_spark.factors.foldin.fold_in with them"
            )
        return self.objective

    @property
    def _rating_column(self) -> str:
        return str(storage.read_json(storage.join(self._directory, FACTS))["ratingCol"])

    def write(self) -> MLWriter:
        return _ModelWriter(self)

    @classmethod
    def read(cls) -> MLReader[WALSModel]:
        return _ModelReader()


def read_factors(path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids int64, vectors float32 (n, k) and biases float32 of a directory of factors."""
    fs, local = storage.filesystem(path)
    return factor_arrays(pq.read_table(local, filesystem=fs, columns=["id", "features", "bias"]))


def factor_arrays(table: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """See `read_factors`."""
    ids, vectors = table["id"].to_numpy(), lists_to_matrix(table["features"], "features")
    return ids, vectors.astype(np.float32, copy=False), table["bias"].to_numpy().astype(np.float32, copy=False)


class _ModelWriter(MLWriter):
    def __init__(self, model: WALSModel) -> None:
        super().__init__()
        self.model = model

    def saveImpl(self, path: str) -> None:
        model = self.model
        assert model.objective is not None
        facts = {"rank": model.rank, "objective": model.objective.to_dict(), "losses": model.losses}
        DefaultParamsWriter.saveMetadata(model, path, self.sparkSession, extraMetadata={"wals": facts})
        for side in ("row", "col"):
            model._factors(side).write.parquet(storage.join(path, side))
        storage.write_json(storage.join(path, FACTS), {"ratingCol": model._rating_column})


class _ModelReader(MLReader[WALSModel]):
    def load(self, path: str) -> WALSModel:
        metadata = DefaultParamsReader.loadMetadata(path, self.sparkSession)
        facts = metadata["wals"]
        model = WALSModel(storage.absolute(path), facts["rank"], Objective(**facts["objective"]), facts["losses"])
        model._resetUid(metadata["uid"])
        DefaultParamsReader.getAndSetParams(model, metadata)
        return model
