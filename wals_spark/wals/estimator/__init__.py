"""The ``pyspark.ml`` estimator and its model."""

from wals_spark.wals.estimator.estimator import WALS
from wals_spark.wals.estimator.model import WALSModel

__all__ = ["WALS", "WALSModel"]
