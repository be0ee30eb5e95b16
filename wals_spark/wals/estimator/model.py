"""The model: predictions, recommendations, fold-in of users, on factors that lie in Parquet."""

from __future__ import annotations

import uuid
from typing import Any

from pyspark.ml import Model
from pyspark.ml.util import MLReadable, MLReader, MLWritable, MLWriter
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from wals_spark import storage
from wals_spark.errors import ConfigError, InputError
from wals_spark.objective import Objective
from wals_spark.wals.estimator.factor_files import FACTS, SCHEMA
from wals_spark.wals.estimator.foldin import FOLD_IN_SCHEMA, user_folder
from wals_spark.wals.estimator.params import ModelParams, check_cold_start
from wals_spark.wals.estimator.persistence import ModelReader, ModelWriter
from wals_spark.wals.estimator.ratings import id_column, known_id, quoted
from wals_spark.wals.estimator.recommend import recommendation_schema, recommender
from wals_spark.wals.estimator.setters import ModelSetters

FACTOR_COLUMNS = ("id", "features", "bias")


class WALSModel(Model, ModelParams, ModelSetters, MLReadable["WALSModel"], MLWritable):
    """Factors of users and items.

    Attributes
    ----------
    directory : str
        Where the factors lie.
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
        self.directory = directory
        self.rank = rank
        self.objective = objective
        self.losses = list(losses)

    def side_factors(self, side: str) -> DataFrame:
        """Columns ``id``, ``features`` and ``bias`` of the side "row" (users) or "col" (items)."""
        return SparkSession.active().read.schema(SCHEMA).parquet(storage.join(self.directory, side))

    @property
    def userFactors(self) -> DataFrame:
        """Columns ``id``, of the type that it came in, and ``features``."""
        return self.side_factors("row").select(F.col("id").cast(self._id_types[0]), "features")

    @property
    def itemFactors(self) -> DataFrame:
        """Columns ``id``, of the type that it came in, and ``features``."""
        return self.side_factors("col").select(F.col("id").cast(self._id_types[1]), "features")

    def _transform(self, dataset: DataFrame) -> DataFrame:
        strategy, target = self.getColdStartStrategy(), self.getPredictionCol()
        check_cold_start(strategy)
        if target in dataset.columns:
            raise InputError(f"the data has a column {target} already; set predictionCol to another name, or drop it")
        # Names that no column of the data has: it may hold anything, doubled names too.
        mark = f"_wals_{uuid.uuid4().hex[:8]}_"
        left, right = (
            self.side_factors(side).select(*(F.col(name).alias(f"{mark}{side}_{name}") for name in FACTOR_COLUMNS))
            for side in ("row", "col")
        )
        user, item = known_id(self.getUserCol(), dataset), known_id(self.getItemCol(), dataset)
        u, v = f"{mark}row_features", f"{mark}col_features"
        products = F.zip_with(u, v, lambda u, v: u.cast("double") * v)
        score = F.aggregate(products, F.lit(0.0), lambda total, product: total + product)
        score = score + F.col(f"{mark}row_bias") + F.col(f"{mark}col_bias")
        keyed = dataset.withColumns({f"{mark}user": user, f"{mark}item": item})
        joined = keyed.join(left, F.col(f"{mark}user") == F.col(f"{mark}row_id"), "left")
        joined = joined.join(right, F.col(f"{mark}item") == F.col(f"{mark}col_id"), "left")
        prediction = F.coalesce(score, F.lit(float("nan"))).cast("float")
        if strategy.lower() == "drop":
            joined = joined.where(~F.isnan(prediction))
        ours = [name for name in joined.columns if name.startswith(mark)]
        scored = joined.withColumn(f"{mark}prediction", prediction).drop(*ours)
        return scored.withColumnRenamed(f"{mark}prediction", target)

    def recommendForAllUsers(self, numItems: int) -> DataFrame:
        """The best `numItems` items of every user: (user, array of (item, rating))."""
        return self._recommend("row", self.side_factors("row"), numItems)

    def recommendForAllItems(self, numUsers: int) -> DataFrame:
        """The best `numUsers` users of every item: (item, array of (user, rating))."""
        return self._recommend("col", self.side_factors("col"), numUsers)

    def recommendForUserSubset(self, dataset: DataFrame, numItems: int) -> DataFrame:
        """`recommendForAllUsers` for the users of a column of `dataset`; unknown ones are left out."""
        return self._recommend("row", self._subset("row", dataset, self.getUserCol()), numItems)

    def recommendForItemSubset(self, dataset: DataFrame, numUsers: int) -> DataFrame:
        """`recommendForAllItems` for the items of a column of `dataset`; unknown ones are left out."""
        return self._recommend("col", self._subset("col", dataset, self.getItemCol()), numUsers)

    def _subset(self, side: str, dataset: DataFrame, column: str) -> DataFrame:
        wanted = dataset.select(known_id(column, dataset).alias("id")).distinct()
        return self.side_factors(side).join(wanted, "id", "left_semi")

    def _recommend(self, side: str, queries: DataFrame, count: int) -> DataFrame:
        if count < 1:
            raise ConfigError(f"the number of recommendations is {count}, expected 1 or more")
        names = (self.getUserCol(), self.getItemCol())
        own, other = names if side == "row" else names[::-1]
        path = storage.join(self.directory, "col" if side == "row" else "row")
        recommend = recommender(path, own, other, count, self.getOrDefault(self.blockSize))
        rows = queries.select("id", "features", "bias").mapInArrow(recommend, recommendation_schema(own, other))
        mine, theirs = self._id_types if side == "row" else self._id_types[::-1]
        pairs = T.StructType([T.StructField(other, theirs), T.StructField("rating", T.FloatType())])
        return rows.select(F.col(quoted(own)).cast(mine).alias(own), rows["recommendations"].cast(T.ArrayType(pairs)))

    def foldInUsers(self, dataset: DataFrame) -> DataFrame:
        """Exact factors of users, old or new, from their *whole* history: (id, features).

        Parameters
        ----------
        dataset : DataFrame
            The columns of the training; items that the model does not know are left out.
        """
        user, item, rating = self.getUserCol(), self.getItemCol(), self.rating_column
        value = F.col(rating).cast("double") if rating else F.lit(1.0)
        cells = dataset.select(
            id_column(user, dataset).alias("user"), id_column(item, dataset).alias("item"), value.alias("value")
        ).repartition("user")
        solve = user_folder(storage.join(self.directory, "col"), self._objective_without_marginals())
        return cells.mapInArrow(solve, FOLD_IN_SCHEMA)

    def _objective_without_marginals(self) -> Objective:
        assert self.objective is not None
        if self.objective.popularity_exponent != 0 or self.objective.target == "pmi":
            raise ConfigError(
                f"fold-in with the objective {self.objective.name!r} needs the marginals of the training; "
                "use wals_spark.factors.foldin.fold_in with them"
            )
        return self.objective

    @property
    def training_facts(self) -> dict[str, str]:
        """See `wals_spark.wals.estimator.ratings.training_facts`."""
        return dict(storage.read_json(storage.join(self.directory, FACTS)))

    @property
    def rating_column(self) -> str:
        """The column of ratings of the training."""
        return self.training_facts["ratingCol"]

    @property
    def _id_types(self) -> tuple[T.DataType, T.DataType]:
        """Of users and items, as in the data of the training; models of earlier versions know 64-bit ids only."""
        facts = self.training_facts
        user, item = (T._parse_datatype_string(facts.get(side, "bigint")) for side in ("row", "col"))
        return user, item

    def write(self) -> MLWriter:
        return ModelWriter(self)

    @classmethod
    def read(cls) -> MLReader[WALSModel]:
        return ModelReader(cls)
