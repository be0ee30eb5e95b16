"""The result of a training: both sides in the canonical gauge, as Parquet, every rank its rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from wals_spark import storage
from wals_spark.factors import gauge
from wals_spark.matrix.list_column import matrix_to_lists
from wals_spark.wals.engine import checkpoint
from wals_spark.wals.engine.convergence import DivergedError
from wals_spark.wals.engine.factors import FactorStore
from wals_spark.wals.engine.task import RankTask
from wals_spark.wals.partition.side import SIDES


def write_result(task: RankTask, store: FactorStore) -> tuple[list[dict[str, Any]], list[float]]:
    """Both sides in the canonical gauge, every rank its rows; returns the shards and singular values."""
    k = task.config.k
    if not task.canonical or task.objective.prediction != "product":
        return _write_sides(task, store, np.eye(k), np.eye(k)), []
    r_u, r_v = (_triangular_factor(store, side, task.threads) for side in SIDES)
    t_u, t_v, singular = gauge.gauge_transforms(r_u, r_v, task.config.gauge_power)
    extremes = store.map_chunks("row", (k,), lambda x, ids: gauge.column_extremes(x[:, :k] @ t_u))
    t_u, t_v = gauge.fix_signs(t_u, t_v, gauge.column_extremes(np.stack(extremes)))
    return _write_sides(task, store, t_u, t_v), [float(value) for value in singular]


def _write_sides(task: RankTask, store: FactorStore, t_u: np.ndarray, t_v: np.ndarray) -> list[dict[str, Any]]:
    k, rank = task.config.k, store.group.rank
    entries = []
    for side, t in (("row", t_u), ("col", t_v)):
        ids, x = store.rows_to_write(side)
        for number, part in enumerate(checkpoint.slices(len(x), x.itemsize * k)):
            vectors = (x[part, :k] @ t).astype(np.float32)
            if not np.isfinite(vectors).all():
                raise DivergedError(f"factors of side {side} are not finite after the change of gauge")
            bias = x[part, k] if store.layout.width > k else np.zeros(len(vectors), np.float32)
            of_side = store.sides[side]
            marginals = of_side.sums[ids[part]], of_side.cell_counts[ids[part]]
            path = storage.join(task.result, f"{side}-{rank:05d}-{number:03d}.parquet")
            storage.write_bytes(path, encode_result(ids[part], vectors, bias.astype(np.float32), marginals))
            entries.append({"side": side, "path": path, "rows": len(vectors)})
    return [entry for part in store.group.all_gather_object(entries) for entry in part]


def _triangular_factor(store: FactorStore, side: str, threads: int) -> np.ndarray:
    k = store.layout.k
    parts = store.map_chunks(side, (k, k), lambda x, ids: gauge.triangular_factor(x[:, :k]), threads)
    return gauge.stack_factors(parts, k)


def encode_result(
    ids: np.ndarray, vectors: np.ndarray, bias: np.ndarray, marginals: tuple[np.ndarray, np.ndarray]
) -> bytes:
    """Rows of the result as a Parquet file.

    Parameters
    ----------
    ids : int array of shape (r,)
    vectors : array of shape (r, k)
    bias : float32 array of shape (r,)
    marginals : (float64 array of shape (r,), int64 array of shape (r,))
        Sums of the rows and their observed cells.

    Returns
    -------
    bytes
        Columns (token_id int32, vector list<float>, bias float, sum double, cells int64).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    lists = matrix_to_lists(vectors.astype(np.float32, copy=False))
    sink = pa.BufferOutputStream()
    sums, cells = marginals
    table = pa.table(
        {
            "token_id": ids.astype(np.int32),
            "vector": lists,
            "bias": bias,
            "sum": sums.astype(np.float64),
            "cells": cells,
        }
    )
    pq.write_table(table, sink, compression="none", use_dictionary=False)
    return sink.getvalue().to_pybytes()
