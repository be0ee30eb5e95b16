r"""The shift of a token between general text and a domain: the difference of two fold-ins.

For a token i, with the same column factors V for both::

    delta_i = fold_in(row of the summed counts) - fold_in(row of the general counts)
    shift_i = c_i / (c_i + h_c) . f_i delta_i W

W is the map of the alignment, f_i the factor of its norm matching, c_i the domain's count. A token that the
domain uses as general text does has delta near 0 and stays; the general meaning remains in the row, and only the
domain's difference moves it. Each row is solved with the marginals of its own counts.

The fold-ins run in Spark: a task reads the cells of some rows from the sorted block files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wals_spark import schemas, storage
from wals_spark.errors import InputError
from wals_spark.factors.foldin import fold_in, read_marginals
from wals_spark.matrix.csr import Csr, build_csr
from wals_spark.objective import Marginals, Objective
from wals_spark.tables import TableStore

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROWS_PER_TASK = 512


@dataclass(frozen=True)
class BatchCounts:
    """Counts of some batches.

    Attributes
    ----------
    files : tuple of str
        Parquet files of their cells.
    marginals : Marginals
    """

    files: tuple[str, ...]
    marginals: Marginals


def batch_counts(tables: TableStore, batches: Sequence[str], size: int, unit: int) -> BatchCounts:
    """The sum of some batches.

    Parameters
    ----------
    tables : TableStore
    batches : sequence of str
    size : int
        T, the vocabulary's size.
    unit : int
        Counts are multiples of 1 / unit.

    Returns
    -------
    BatchCounts
    """
    files = tuple(
        data_file.path for batch in batches for data_file in tables.files(schemas.COOCCURRENCE, {"batch_id": batch})
    )
    return BatchCounts(files, read_marginals(tables, batches, size, unit))


def read_rows(files: Sequence[str], ids: np.ndarray) -> Csr:
    """The rows `ids` (ascending) of the sum of some batches; files are sorted by row, so only parts are read.

    Raises
    ------
    InputError
        There are no files.
    """
    import pyarrow.parquet as pq

    rows, cols, values = [], [], []
    for name in files:
        fs, path = storage.filesystem(name)
        wanted = [("row_id", ">=", int(ids[0])), ("row_id", "<=", int(ids[-1]))]
        table = pq.read_table(path, filesystem=fs, columns=["row_id", "col_id", "units"], filters=wanted)
        row = table["row_id"].to_numpy()
        place = np.searchsorted(ids, row)
        mine = ids[np.minimum(place, len(ids) - 1)] == row
        rows.append(place[mine])
        cols.append(table["col_id"].to_numpy()[mine])
        values.append(table["units"].to_numpy()[mine])
    if not rows:
        raise InputError("the batches have no co-occurrence files; run `wals-spark cooccurrence` again")
    return build_csr(np.concatenate(rows), np.concatenate(cols), np.concatenate(values), len(ids))


def fold_in_difference(
    ids: np.ndarray, total: BatchCounts, general: BatchCounts, V: np.ndarray, objective: Objective, unit: int
) -> np.ndarray:
    """delta_i of some tokens, in this process.

    Parameters
    ----------
    ids : int64 array of shape (n,)
        Ascending.
    total : BatchCounts
        Of all batches.
    general : BatchCounts
        Of the general ones.
    V : float32 array of shape (T, k)
        Column factors.
    objective : Objective
        Of the training.
    unit : int
        Counts are multiples of 1 / unit.

    Returns
    -------
    float32 array of shape (n, k)

    Raises
    ------
    InputError
        There are no co-occurrence files.
    """
    summed, _ = fold_in(read_rows(total.files, ids), V, objective, total.marginals, unit=unit)
    before, _ = fold_in(read_rows(general.files, ids), V, objective, general.marginals, unit=unit)
    return (summed - before).astype(np.float32)


def fold_in_difference_in_spark(
    spark: SparkSession,
    ids: np.ndarray,
    total: BatchCounts,
    general: BatchCounts,
    V: np.ndarray,
    objective: Objective,
    unit: int,
    rows_per_task: int = ROWS_PER_TASK,
) -> np.ndarray:
    """delta_i of every token, in Spark; zeros for tokens that are not among `ids`.

    Parameters
    ----------
    spark : SparkSession
    ids : int64 array of shape (n,)
        Tokens of the domain, ascending.
    total : BatchCounts
        Of all batches.
    general : BatchCounts
        Of the general ones.
    V : float32 array of shape (T, k)
        Column factors.
    objective : Objective
        Of the training.
    unit : int
        Counts are multiples of 1 / unit.
    rows_per_task : int

    Returns
    -------
    float32 array of shape (T, k)
    """
    shared = spark.sparkContext.broadcast((total, general, V, objective, unit))

    def solve(part: list[int]) -> tuple[list[int], bytes]:
        every, some, factors, wanted, divisor = shared.value
        return part, fold_in_difference(np.array(part, np.int64), every, some, factors, wanted, divisor).tobytes()

    # neighbouring ids together: they lie together in the files
    pieces: list[Any] = [ids[begin : begin + rows_per_task].tolist() for begin in range(0, len(ids), rows_per_task)]
    result = np.zeros((V.shape[0], V.shape[1]), np.float32)
    if pieces:
        for part, content in spark.sparkContext.parallelize(pieces, len(pieces)).map(solve).collect():
            result[part] = np.frombuffer(content, np.float32).reshape(len(part), -1)
    shared.unpersist()
    return result
