"""The model: predictions, recommendations, fold-in of users, on factors that lie in Parquet."""

from __future__ import annotations

from typing import Any

from pyspark.ml import Model
from pyspark.ml.util import MLReadable, MLReader, MLWritable, MLWriter
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from wals_spark import storage
from wals_spark.errors import ConfigError
from wals_spark.objective import Objective
from wals_spark.wals.estimator.factor_files import FACTS, SCHEMA
from wals_spark.wals.estimator.foldin import FOLD_IN_SCHEMA, user_folder
from wals_spark.wals.estimator.params import ModelParams
from wals_spark.wals.estimator.persistence import ModelReader, ModelWriter
from wals_spark.wals.estimator.ratings import id_column, known_id
from wals_spark.wals.estimator.recommend import recommendation_schema, recommender


class WALSModel(Model, ModelParams, MLReadable["WALSModel"], MLWritable):
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

    def side_factors(self, side: str) -> DataFrame:
        """Columns ``id``, ``features`` and ``bias`` of the side "row" (users) or "col" (items)."""
        return SparkSession.active().read.schema(SCHEMA).parquet(storage.join(self._directory, side))

    @property
    def userFactors(self) -> DataFrame:
        """Columns ``id`` and ``features``."""
        return self.side_factors("row").select("id", "features")

    @property
    def itemFactors(self) -> DataFrame:
        """Columns ``id`` and ``features``."""
        return self.side_factors("col").select("id", "features")

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
        left = self.side_factors("row").select(
            F.col("id").alias("_user"), F.col("features").alias("_u"), F.col("bias").alias("_b")
        )
        right = self.side_factors("col").select(
            F.col("id").alias("_item"), F.col("features").alias("_v"), F.col("bias").alias("_c")
        )
        products = F.zip_with("_u", "_v", lambda u, v: u.cast("double") * v)
        score = F.aggregate(products, F.lit(0.0), lambda total, product: total + product) + F.col("_b") + F.col("_c")
        joined = dataset.join(left, known_id(user) == F.col("_user"), "left")
        joined = joined.join(right, known_id(item) == F.col("_item"), "left")
        prediction = F.coalesce(score, F.lit(float("nan"))).cast("float")
        result = joined.select(*[dataset[name] for name in dataset.columns], prediction.alias(self.getPredictionCol()))
        if self.getColdStartStrategy() == "drop":
            result = result.where(~F.isnan(self.getPredictionCol()))
        return result

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
        wanted = dataset.select(id_column(column, dataset).alias("id")).distinct()
        return self.side_factors(side).join(wanted, "id", "left_semi")

    def _recommend(self, side: str, queries: DataFrame, count: int) -> DataFrame:
        if count < 1:
            raise ConfigError(f"the number of recommendations is {count}, expected 1 or more")
        names = (self.getUserCol(), self.getItemCol())
        own, other = names if side == "row" else names[::-1]
        path = storage.join(self._directory, "col" if side == "row" else "row")
        recommend = recommender(path, own, other, count, self.getOrDefault(self.blockSize))
        rows = queries.select("id", "features", "bias")
        return rows.mapInArrow(recommend, recommendation_schema(own, other))

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
        solve = user_folder(storage.join(self._directory, "col"), self._objective_without_marginals())
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
    def rating_column(self) -> str:
        """The column of ratings of the training."""
        return str(storage.read_json(storage.join(self._directory, FACTS))["ratingCol"])

    def write(self) -> MLWriter:
        return ModelWriter(self)

    @classmethod
    def read(cls) -> MLReader[WALSModel]:
        return ModelReader(cls)
