"""The model: predictions, recommendations, fold-in of users and items, on factors that lie in Parquet."""

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
from wals_spark.factors.foldin import refuse_without_half_step
from wals_spark.objective import Objective
from wals_spark.tables.base import without_wildcards
from wals_spark.wals.estimator.factor_files import FACTOR_COLUMNS, FACTS, SCHEMA
from wals_spark.wals.estimator.foldin import FOLD_IN_SCHEMA, folder
from wals_spark.wals.estimator.params import ModelParams, check_cold_start
from wals_spark.wals.estimator.persistence import ModelReader, ModelWriter
from wals_spark.wals.estimator.ratings import fold_in_cells, known_id, quoted
from wals_spark.wals.estimator.recommend import recommendation_schema, recommender
from wals_spark.wals.estimator.setters import ModelSetters


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
        """Columns ``id``, ``features``, ``bias``, ``sum`` and ``cells`` of the side "row" (users) or "col" (items)."""
        return SparkSession.active().read.schema(SCHEMA).parquet(without_wildcards(storage.join(self.directory, side)))

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
        constant = self._constant
        terms = F.zip_with(
            u, v, lambda u, v: u.cast("double") * v if constant is None else F.pow(u.cast("double") + v, 2)
        )
        score = F.aggregate(terms, F.lit(constant or 0.0), lambda total, term: total + term)
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
        recommend = recommender(path, own, other, count, self.getOrDefault(self.blockSize), self._constant)
        rows = queries.select(*FACTOR_COLUMNS).mapInArrow(recommend, recommendation_schema(own, other))
        mine, theirs = self._id_types if side == "row" else self._id_types[::-1]
        pairs = T.StructType([T.StructField(other, theirs), T.StructField("rating", T.FloatType())])
        return rows.select(F.col(quoted(own)).cast(mine).alias(own), rows["recommendations"].cast(T.ArrayType(pairs)))

    def foldInUsers(self, dataset: DataFrame) -> DataFrame:
        """Exact factors of users, old or new, from their *whole* history: (id, features), and ``bias`` with biases.

        Parameters
        ----------
        dataset : DataFrame
            The columns of the training; items that the model does not know are left out. Repeated pairs are treated
            as they were in the training. It is read twice: for a check, and when the result is asked for.

        Raises
        ------
        InputError
            The objective has no exact solution of a row, or an id, a rating or a column is not as in the training.
        """
        return self._fold_in("row", dataset)

    def foldInItems(self, dataset: DataFrame) -> DataFrame:
        """Exact factors of items from their *whole* history; as `foldInUsers`, with users and items swapped.

        Parameters
        ----------
        dataset : DataFrame

        Raises
        ------
        InputError
            As `foldInUsers`; also for an objective that is not symmetric in rows and columns.
        """
        return self._fold_in("col", dataset)

    def _fold_in(self, side: str, dataset: DataFrame) -> DataFrame:
        objective, facts = self.objective, self.training_facts
        assert objective is not None
        refuse_without_half_step(objective)
        if facts.get("nonnegative"):
            raise InputError("fold-in without negative factors is not available; train again with the new rows")
        if side == "col" and not objective.symmetric:
            raise InputError(
                f"the objective {objective.name} is not symmetric in rows and columns, so its columns have no fold-in; "
                "train again with the new items"
            )
        if "total" not in facts:
            raise InputError("the model was saved by a version that kept no marginals of the training; train again")
        columns, types, other_side = (self.getUserCol(), self.getItemCol()), self._id_types, "col"
        if side == "col":
            columns, types, other_side = columns[::-1], types[::-1], "row"
        cells = fold_in_cells(dataset, (columns[0], types[0]), columns[1], self.rating_column, facts["duplicates"])
        solve = folder(storage.join(self.directory, other_side), objective, facts, side)
        rows = cells.repartition("own").mapInArrow(solve, FOLD_IN_SCHEMA)
        biases = ["bias"] if objective.bias != "none" else []
        return rows.select(F.col("id").cast(types[0]), "features", *biases)

    @property
    def _constant(self) -> float | None:
        """The z of predictions ``z + |u + v|^2``; None where they are products.

        Raises
        ------
        InputError
            The model was saved without it.
        """
        if self.objective is None or self.objective.prediction == "product":
            return None
        if "constant" not in self.training_facts:
            raise InputError(
                f"the model was saved by a version that kept no constant of the objective {self.objective.name}; train "
                "again"
            )
        return float(self.training_facts["constant"])

    @property
    def training_facts(self) -> dict[str, Any]:
        """What the model remembers of its training.

        The column of ratings, types of ids ("row", "col"), `duplicates`; of the matrix: `total` and `observed`, sum and
        number of all cells, and `log_means` of the sums of both sides; `constant`, z of the objective squared_norm.
        """
        return dict(storage.read_json(storage.join(self.directory, FACTS)))

    @property
    def rating_column(self) -> str:
        """The column of ratings of the training."""
        return str(self.training_facts["ratingCol"])

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
