"""Counts as a SciPy matrix, for a notebook or another library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wals_spark import storage
from wals_spark.errors import InputError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

COLUMNS = ("row_id", "col_id", "units")


def to_scipy(
    source: Sequence[str] | pa.Table, *, unit: int | None = None, shape: tuple[int, int] | None = None
) -> csr_matrix:
    """X with X[i, j] = units(i, j), or units / unit.

    Parameters
    ----------
    source : list of Parquet files of the co-occurrence table, or an Arrow table of its columns
        Cells that come several times, as those of several batches do, are summed as integers.
    unit : int, optional
        Of the counts, see the manifest; None = leave them as int64 units.
    shape : (int, int), optional
        None = the largest ids + 1.

    Returns
    -------
    scipy.sparse.csr_matrix of shape `shape`, int64 or float64
        16 to 20 bytes per non-zero while it is built, 12 afterwards.

    Raises
    ------
    InputError
        Negative ids or counts, ids outside `shape`, or a sum that overflows.
    """
    from scipy.sparse import coo_matrix

    parts = [source] if isinstance(source, pa.Table) else [_read(path) for path in source]
    rows, cols, units = (_column(parts, name) for name in COLUMNS)
    if len(rows) and min(rows.min(), cols.min(), units.min()) < 0:
        raise InputError("negative ids or counts: this is not a table of co-occurrences")
    largest = (int(rows.max(initial=-1)), int(cols.max(initial=-1)))
    if shape is None:
        shape = (largest[0] + 1, largest[1] + 1)
    if largest[0] >= shape[0] or largest[1] >= shape[1]:
        raise InputError(f"the largest ids are {largest[0]} and {largest[1]}, outside the shape {shape}")
    matrix: Any = coo_matrix((units, (rows, cols)), shape=shape, dtype=np.int64).tocsr()
    if matrix.nnz and matrix.data.min() < 0:
        raise InputError("sums of counts overflow an int64: take fewer batches")
    return matrix if unit is None else matrix / unit


def _read(path: str) -> pa.Table:
    fs, inner = storage.filesystem(path)
    with fs.open_input_file(inner) as source:
        return pq.ParquetFile(source).read(columns=list(COLUMNS))


def _column(parts: Sequence[pa.Table], name: str) -> np.ndarray:
    arrays = [part[name].to_numpy() for part in parts]
    return np.concatenate(arrays) if arrays else np.zeros(0, np.int64)
