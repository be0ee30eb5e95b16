"""Exact factors of users or items from their ratings, as a function over Arrow batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from wals_spark.factors.foldin import FixedMarginals, fold_in
from wals_spark.matrix.csr import build_csr
from wals_spark.matrix.list_column import matrix_to_lists
from wals_spark.objective import Objective
from wals_spark.wals.estimator.factor_files import read_fixed_side
from wals_spark.wals.estimator.recommend import BatchFunction

FOLD_IN_SCHEMA = "id bigint, features array<float>, bias float"


def folder(path: str, objective: Objective, facts: Mapping[str, Any], side: str) -> BatchFunction:
    """Cells (own, other, value), all of an own id in one partition, to (id, features, bias).

    Parameters
    ----------
    path : str
        Factors of the other side; cells of others than these are left out.
    objective : Objective
    facts : mapping
        Of the training, see `wals_spark.wals.estimator.ratings.training_facts`.
    side : {"row", "col"}
        The own side.

    Returns
    -------
    callable
        For ``mapInArrow``.
    """

    def solve(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        tables = [pa.Table.from_batches([batch]) for batch in batches if batch.num_rows]
        if not tables:
            return
        table = pa.concat_tables(tables)
        fixed, sums, cells = read_fixed_side(path)
        others = table["other"].to_numpy()
        at = np.clip(np.searchsorted(fixed.ids, others), 0, len(fixed.ids) - 1)
        known = fixed.ids[at] == others
        ids, number = np.unique(table["own"].to_numpy(), return_inverse=True)
        rows = build_csr(
            number[known].astype(np.int32),
            at[known].astype(np.int32),
            table["value"].to_numpy()[known],
            len(ids),
            duplicates=facts["duplicates"],
        )
        marginals = FixedMarginals(sums, cells, facts["total"], facts["observed"], facts["log_means"][side])
        x, bias = fold_in(rows, fixed.vectors, objective, marginals, c=fixed.bias, ids=ids)
        arrays = [pa.array(ids), matrix_to_lists(x.astype(np.float32)), pa.array(bias.astype(np.float32))]
        yield pa.RecordBatch.from_arrays(arrays, ["id", "features", "bias"])

    return solve
