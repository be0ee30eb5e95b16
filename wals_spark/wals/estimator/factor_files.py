"""Factors of a model on disk: Parquet of (id, features, bias), a directory per side."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wals_spark import storage
from wals_spark.matrix.list_column import lists_to_matrix

FACTS = "training.json"
"""Beside the two directories: the column of ratings."""
SCHEMA = "id bigint, features array<float>, bias float"


def read_factors(path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids int64, vectors float32 (n, k) and biases float32 of a directory of factors."""
    fs, local = storage.filesystem(path)
    return factor_arrays(pq.read_table(local, filesystem=fs, columns=["id", "features", "bias"]))


def factor_arrays(table: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, vectors and biases of a table of these, see `read_factors`."""
    ids, vectors = table["id"].to_numpy(), lists_to_matrix(table["features"], "features")
    return ids, vectors.astype(np.float32, copy=False), table["bias"].to_numpy().astype(np.float32, copy=False)
