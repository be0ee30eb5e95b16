"""Exact factors of users from their ratings, as a function over Arrow batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from wals_spark.factors.foldin import fold_in
from wals_spark.matrix.csr import build_csr
from wals_spark.matrix.list_column import matrix_to_lists
from wals_spark.objective import Marginals, Objective
from wals_spark.wals.estimator.factor_files import read_factors
from wals_spark.wals.estimator.recommend import BatchFunction

FOLD_IN_SCHEMA = "id bigint, features array<float>"


def user_folder(path: str, objective: Objective) -> BatchFunction:
    """Rows (user, item, value), all of a user in one partition, to (id, features).

    Parameters
    ----------
    path : str
        Factors of the items.
    objective : Objective
        That does not depend on marginals.
    """

    def solve(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        tables = [pa.Table.from_batches([batch]) for batch in batches if batch.num_rows]
        if not tables:
            return
        table = pa.concat_tables(tables)
        ids, vectors, bias = read_factors(path)
        order = np.argsort(ids)
        ids, vectors, bias = ids[order], vectors[order], bias[order]
        items = table["item"].to_numpy()
        at = np.clip(np.searchsorted(ids, items), 0, len(ids) - 1)
        known = ids[at] == items
        users, number = np.unique(table["user"].to_numpy(), return_inverse=True)
        rows = build_csr(
            number[known].astype(np.int32),
            at[known].astype(np.int32),
            table["value"].to_numpy()[known],
            len(users),
            duplicates="keep",
        )
        ones = np.ones(len(ids))
        marginals = Marginals(ones, ones, ones.astype(np.int64), ones.astype(np.int64))
        u, _ = fold_in(rows, vectors, objective, marginals, c=bias)
        columns = [pa.array(users), matrix_to_lists(u.astype(np.float32))]
        yield pa.RecordBatch.from_arrays(columns, ["id", "features"])

    return solve
