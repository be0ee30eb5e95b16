"""MLlib's ALS and ours in one Spark session on the same ratings, by changing the import; one JSON line per case.

    python benchmarks/wals_mllib.py --warehouse W --k 64

The ratings are the largest `--cells` cells of a co-occurrence matrix. Seconds per sweep are the difference between fits
of more sweeps and of one, over the sweeps between them, so that reading, partitioning and session start are not counted
for either (MLlib two, ours eleven, because a sweep of ours is short beside the start of a stage); `fit_s` is the whole
longer fit. Both losses are MLlib's implicit objective, by one float64 function.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.ml.recommendation import ALS
from pyspark.sql import SparkSession
from scipy.sparse import csr_matrix
from wals import largest_cells

from wals_spark import WALS
from wals_spark.matrix.list_column import lists_to_matrix

REG_PARAM, ALPHA = 0.01, 1.0
ESTIMATORS = {"mllib": (ALS, 2), "wals": (WALS, 11)}
"""Of each: the class and the sweeps of its longer fit."""


def emit(case: str, **facts: Any) -> None:
    """One JSON line."""
    print(json.dumps({"benchmark": "wals_mllib", "case": case, **facts, "cores": os.cpu_count()}), flush=True)


def vectors(frame: Any, size: int, k: int) -> np.ndarray:
    """Factors as an array, rows without any being zero."""
    table = frame.toArrow()
    out = np.zeros((size, k))
    out[table["id"].to_numpy()] = lists_to_matrix(table["features"], "features")
    return out


def loss(x: csr_matrix, u: np.ndarray, v: np.ndarray) -> float:
    """``sum_all c (p - s)^2 + regParam (sum_i n_i |u_i|^2 + sum_j n_j |v_j|^2)`` with c = 1 + alpha x."""
    total = float(((u.T @ u) * (v.T @ v)).sum())
    for start in range(0, x.shape[0], 512):
        part = x[start : start + 512]
        rows = np.repeat(np.arange(part.shape[0]) + start, np.diff(part.indptr))
        s = np.einsum("ij,ij->i", u[rows], v[part.indices])
        total += float(((1.0 + ALPHA * part.data) * (1.0 - s) ** 2 - s**2).sum())
    cells = (np.diff(x.indptr), np.bincount(x.indices, minlength=x.shape[1]))
    return total + REG_PARAM * sum(float(n @ (f**2).sum(1)) for n, f in zip(cells, (u, v), strict=True))


def fit(estimator: type, ratings: Any, k: int, sweeps: int) -> tuple[Any, float]:
    """A model and its seconds."""
    started = time.perf_counter()
    model = estimator(
        rank=k, maxIter=sweeps, regParam=REG_PARAM, alpha=ALPHA, implicitPrefs=True, seed=1,
        userCol="row_id", itemCol="col_id", ratingCol="value",
    ).fit(ratings)  # fmt: skip
    return model, time.perf_counter() - started


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warehouse", required=True)
    parser.add_argument("--cells", type=int, default=17_000_000)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    x = largest_cells(arguments.warehouse, arguments.cells)
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.master(f"local[{arguments.cores}]").config("spark.driver.memory", "8g")
    spark = builder.config("spark.ui.enabled", "false").getOrCreate()
    with tempfile.TemporaryDirectory() as directory:
        coo = x.tocoo()
        columns = {"row_id": coo.row, "col_id": coo.col, "value": coo.data.astype(np.float32)}
        pq.write_table(pa.table(columns), f"{directory}/ratings.parquet", row_group_size=1 << 20)
        ratings = spark.read.parquet(f"{directory}/ratings.parquet").repartition(arguments.cores).cache()
        ratings.count()
        per_sweep = {}
        # A small fit of both first, which compiles and starts workers.
        for name, (estimator, sweeps) in ESTIMATORS.items():
            fit(estimator, ratings.limit(10_000), 8, 1)
            _, one = fit(estimator, ratings, arguments.k, 1)
            model, whole = fit(estimator, ratings, arguments.k, sweeps)
            factors = (vectors(f, x.shape[0], arguments.k) for f in (model.userFactors, model.itemFactors))
            per_sweep[name] = (whole - one) / (sweeps - 1)
            facts = {"k": arguments.k, "nnz": x.nnz, "sweeps": sweeps, "s_per_sweep": per_sweep[name], "fit_s": whole}
            emit(name, **facts, loss=loss(x, *factors))
        emit("ratio", mllib_over_wals_per_sweep=per_sweep["mllib"] / per_sweep["wals"])
    spark.stop()


if __name__ == "__main__":
    main()
