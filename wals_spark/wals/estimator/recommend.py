"""Recommendations: the rows of the other side with the largest predictions, as a function over Arrow batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
from pyspark.sql import types as T

from wals_spark.factors.top_k import top_k
from wals_spark.matrix.list_column import lists_of_length
from wals_spark.wals.estimator.factor_files import SideFactors, factor_arrays, read_factors

BatchFunction = Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]


def recommendation_schema(own: str, other: str) -> T.StructType:
    """Of ``(own, recommendations: array of (other, rating))``."""
    pair = T.StructType([T.StructField(other, T.LongType()), T.StructField("rating", T.FloatType())])
    return T.StructType([T.StructField(own, T.LongType()), T.StructField("recommendations", T.ArrayType(pair))])


def query_terms(side: SideFactors, constant: float | None) -> np.ndarray:
    """Rows whose products with `candidate_terms` are all predictions.

    ::

        u.v + b + c      = [u, 1, b] . [v, c, 1]
        z + |u + v|^2    = [2 u, 1, |u|^2 + z] . [v, |v|^2, 1]

    Parameters
    ----------
    side : SideFactors of r rows
    constant : float or None
        z of the second; None = the first.

    Returns
    -------
    float32 array of shape (r, k + 2)
    """
    ones = np.ones((len(side.ids), 1), np.float32)
    if constant is None:
        return np.hstack([side.vectors, ones, side.bias[:, None]])
    return np.hstack([2 * side.vectors, ones, _squared_norms(side)[:, None] + np.float32(constant)])


def candidate_terms(side: SideFactors, constant: float | None) -> np.ndarray:
    """The other factor of `query_terms`, a float32 array of shape (n, k + 2)."""
    last = side.bias if constant is None else _squared_norms(side)
    return np.hstack([side.vectors, last[:, None], np.ones((len(side.ids), 1), np.float32)])


def _squared_norms(side: SideFactors) -> np.ndarray:
    return np.square(side.vectors).sum(1)


def recommender(
    path: str, own: str, other: str, count: int, block: int, constant: float | None = None
) -> BatchFunction:
    """Predictions of every row (id, features, bias) with all rows of `path`; the `count` largest, falling.

    Parameters
    ----------
    path : str
        Factors of the other side.
    own, other : str
        Columns of the result, see `recommendation_schema`.
    count : int
    block : int
        Rows of the other side that are multiplied at once.
    constant : float or None
        See `query_terms`.

    Returns
    -------
    callable
        For ``mapInArrow``.
    """

    def recommend(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        # The other side is read once per task: items x rank x 4 bytes.
        others = read_factors(path)
        candidates = candidate_terms(others, constant)
        for batch in batches:
            if not batch.num_rows:
                continue
            queries = factor_arrays(pa.Table.from_batches([batch]))
            numbers, ratings = top_k(
                query_terms(queries, constant), candidates, min(count, len(others.ids)), block=block
            )
            pairs = pa.StructArray.from_arrays(
                [pa.array(others.ids[numbers].reshape(-1)), pa.array(ratings.reshape(-1))], [other, "rating"]
            )
            lists = lists_of_length(pairs, numbers.shape[1], len(queries.ids))
            yield pa.RecordBatch.from_arrays([pa.array(queries.ids), lists], [own, "recommendations"])

    return recommend
