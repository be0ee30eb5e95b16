"""Factors of a model on disk: Parquet of (id, features, bias, sum, cells), a directory per side."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wals_spark import storage
from wals_spark.matrix.list_column import lists_to_matrix

FACTS = "training.json"
"""Beside the two directories: see `wals_spark.wals.estimator.ratings.training_facts`."""
SCHEMA = "id bigint, features array<float>, bias float, sum double, cells bigint"
"""Columns of both directories; the last two are the marginals of the training."""
FACTOR_COLUMNS = ["id", "features", "bias"]


class SideFactors(NamedTuple):
    """Factors of one side.

    Attributes
    ----------
    ids : int64 array of shape (n,)
    vectors : float32 array of shape (n, k)
    bias : float32 array of shape (n,)
    """

    ids: np.ndarray
    vectors: np.ndarray
    bias: np.ndarray


def read_factors(path: str) -> SideFactors:
    """The factors of a directory."""
    fs, local = storage.filesystem(path)
    return factor_arrays(pq.read_table(local, filesystem=fs, columns=FACTOR_COLUMNS))


def read_fixed_side(path: str) -> tuple[SideFactors, np.ndarray, np.ndarray]:
    """The factors of a directory by rising ids, with their sums and observed cells."""
    fs, local = storage.filesystem(path)
    table = pq.read_table(local, filesystem=fs, columns=[*FACTOR_COLUMNS, "sum", "cells"]).sort_by("id")
    return factor_arrays(table), table["sum"].to_numpy(), table["cells"].to_numpy()


def factor_arrays(table: pa.Table) -> SideFactors:
    """Ids, vectors and biases of a table of these."""
    ids, vectors = table["id"].to_numpy(), lists_to_matrix(table["features"], "features")
    bias = table["bias"].to_numpy().astype(np.float32, copy=False)
    return SideFactors(ids, vectors.astype(np.float32, copy=False), bias)
