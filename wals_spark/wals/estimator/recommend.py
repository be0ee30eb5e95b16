"""Recommendations: the rows of the other side with the largest predictions, as a function over Arrow batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
from pyspark.sql import types as T

from wals_spark.factors.top_k import top_k
from wals_spark.matrix.list_column import lists_of_length
from wals_spark.wals.estimator.factor_files import factor_arrays, read_factors

BatchFunction = Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]


def recommendation_schema(own: str, other: str) -> T.StructType:
    """Of ``(own, recommendations: array of (other, rating))``."""
    pair = T.StructType([T.StructField(other, T.LongType()), T.StructField("rating", T.FloatType())])
    return T.StructType([T.StructField(own, T.LongType()), T.StructField("recommendations", T.ArrayType(pair))])


def recommender(path: str, own: str, other: str, count: int, block: int) -> BatchFunction:
    """``u.v + b + c`` of every row (id, features, bias) with all rows of `path`; the `count` largest, falling.

    Parameters
    ----------
    path : str
        Factors of the other side.
    own, other : str
        Columns of the result, see `recommendation_schema`.
    count : int
    block : int
        Rows of the other side that are multiplied at once.

    Returns
    -------
    callable
        For ``mapInArrow``.
    """

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

    return recommend
