"""Compressed sparse rows, built from cells in any order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wals_spark.errors import InputError


@dataclass(frozen=True)
class Csr:
    """Rows of a sparse matrix.

    Attributes
    ----------
    indptr : int64 array of shape (rows + 1,)
    indices : int32 array of shape (nnz,)
        Column ids, rising within a row; repeated only where that was asked for.
    values : int64 or float64 array of shape (nnz,)
    weights : float64 array of shape (nnz,), optional
        Where cells come with their own.
    """

    indptr: np.ndarray
    indices: np.ndarray
    values: np.ndarray
    weights: np.ndarray | None = None

    @property
    def nnz(self) -> int:
        """Stored cells."""
        return len(self.indices)

    @property
    def lengths(self) -> np.ndarray:
        """Stored cells per row, int64."""
        return np.diff(self.indptr)

    def row_numbers(self, start: int, stop: int) -> np.ndarray:
        """The row of each stored cell in the cells of rows start .. stop - 1."""
        return np.repeat(np.arange(start, stop), self.lengths[start:stop])


def build_csr(
    rows: np.ndarray,
    cols: np.ndarray,
    values: np.ndarray,
    n_rows: int,
    *,
    weights: np.ndarray | None = None,
    duplicates: str = "sum",
) -> Csr:
    """Cells to rows; a cell that occurs more than once is summed, refused, or kept as several observations.

    Where cells have weights, two of one place are summed to their mean, weighted, with the sum of their weights:
    ``w (m - s)^2 + w' (m' - s)^2 = (w + w') (mean - s)^2`` up to a constant.

    Integer sums are exact whatever the order of the cells.

    Parameters
    ----------
    rows : int array of shape (c,)
        Row numbers, 0 .. n_rows - 1.
    cols : int32 array of shape (c,)
    values : int64 or float64 array of shape (c,)
    n_rows : int
    weights : float64 array of shape (c,), optional
    duplicates : {"sum", "refuse", "keep"}

    Returns
    -------
    Csr

    Raises
    ------
    InputError
        A repeated cell under "refuse", or a sum beyond int64.
    """
    from wals_spark.matrix import kernels

    if weights is not None:
        return _build_weighted(rows, cols, values, weights, n_rows, duplicates)
    counts = np.zeros(n_rows, np.int64)
    kernels.count_per_row(rows, counts)
    indptr = np.zeros(n_rows + 1, np.int64)
    np.cumsum(counts, out=indptr[1:])
    out_cols, out_values = np.empty(len(cols), np.int32), np.empty(len(cols), values.dtype)
    kernels.scatter(rows, cols, values, indptr[:-1].copy(), out_cols, out_values)
    repeated = kernels.order_rows(indptr, out_cols, out_values)
    if not repeated or duplicates == "keep":
        return Csr(indptr, out_cols, out_values)
    if duplicates == "refuse":
        _refuse(repeated)
    merged = np.zeros(n_rows + 1, np.int64)
    left = kernels.merge_repeated(indptr, out_cols, out_values, merged, values.dtype.kind == "i")
    if left == kernels.OVERFLOW:
        raise InputError("the sum of a repeated cell exceeds 2^63 - 1 units; count fewer batches together")
    return Csr(merged, out_cols[:left].copy(), out_values[:left].copy())


def _build_weighted(
    rows: np.ndarray, cols: np.ndarray, values: np.ndarray, weights: np.ndarray, n_rows: int, duplicates: str
) -> Csr:
    order = np.lexsort((weights, values, cols, rows))
    rows, cols, values, weights = rows[order], cols[order], values[order].astype(np.float64), weights[order]
    first = np.ones(len(rows), bool)
    first[1:] = (rows[1:] != rows[:-1]) | (cols[1:] != cols[:-1])
    repeated = len(rows) - int(first.sum())
    if repeated and duplicates == "refuse":
        _refuse(repeated)
    if repeated and duplicates == "sum":
        starts = np.flatnonzero(first)
        summed, products = np.add.reduceat(weights, starts), np.add.reduceat(weights * values, starts)
        values = np.divide(products, summed, out=values[starts], where=summed > 0)
        rows, cols, weights = rows[starts], cols[starts], summed
    indptr = np.zeros(n_rows + 1, np.int64)
    np.cumsum(np.bincount(rows, minlength=n_rows), out=indptr[1:])
    return Csr(indptr, cols.astype(np.int32, copy=False), values, weights)


def _refuse(repeated: int) -> None:
    raise InputError(
        f"{repeated:,} cells of the matrix occur more than once; give each (row, col) once, or sum them "
        "(duplicates='sum')"
    )


def sum_by(index: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    """Sums of `values` by `index`, exact for integers.

    Returns
    -------
    array of shape (size,) and the dtype of `values`

    Raises
    ------
    InputError
        A sum exceeds int64.
    """
    from wals_spark.matrix import kernels

    sums = np.zeros(size, values.dtype)
    if not kernels.add_at(index, values, sums, values.dtype.kind == "i"):
        raise InputError("a row or column sum exceeds 2^63 - 1 units; count fewer batches together")
    return sums
