"""Which rank owns which row, and the only repartitioning for barrier stages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


def assign_rows(cells: np.ndarray, k: int, ranks: int) -> np.ndarray:
    """The owner of every row, with equal cost per rank.

    A row with n cells costs about ``n k^2 + k^3 / 3`` multiplications. Rows are dealt in falling order of
    cost, forwards and backwards in turn, so ranks differ by less than the cost of one row.

    Parameters
    ----------
    cells : int64 array of shape (rows,)
        Observed cells per row.

    Returns
    -------
    int32 array of shape (rows,)
    """
    cost = cells * float(k) ** 2 + (cells > 0) * (float(k) ** 3 / 3)
    order = np.argsort(-cost, kind="stable")
    turn, place = np.divmod(np.arange(len(cells)), ranks)
    owner = np.empty(len(cells), np.int32)
    owner[order] = np.where(turn % 2 == 0, place, ranks - 1 - place)
    return owner


def one_row_per_rank(spark: SparkSession, ranks: int) -> DataFrame:
    """A frame with one partition per rank, holding its number in the column ``rank``.

    `repartitionById` places exactly; a hash would leave partitions empty, and adaptive execution must not
    merge them.
    """
    from pyspark.sql import functions as F

    numbers = spark.range(0, ranks, 1, 1).select(F.col("id").cast("int").alias("rank"))
    return numbers.repartitionById(ranks, F.col("rank"))
