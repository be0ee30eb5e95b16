"""Sparse matrices in coordinate format, read from Parquet files of (row_id, col_id, value), row groups per rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wals_spark import storage
from wals_spark.errors import InputError

ROW, COL = "row_id", "col_id"
BATCH_ENTRIES = 1 << 20
"""Cells read from a file at a time: at most 24 MB."""


@dataclass(frozen=True)
class RowGroup:
    """A row group of a Parquet file.

    Attributes
    ----------
    path : str
    number : int
        Position of the row group in the file.
    rows : int
    """

    path: str
    number: int
    rows: int


@dataclass(frozen=True)
class Coo:
    """A sparse matrix, or a part of one, in coordinate format; its cells are in no particular order.

    Attributes
    ----------
    rows, cols : int32 arrays of shape (c,)
    values : int64 or float64 array of shape (c,)
    weights : float64 array of shape (c,), optional
    """

    rows: np.ndarray
    cols: np.ndarray
    values: np.ndarray
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def transposed(self) -> Coo:
        """The transpose; arrays are shared."""
        return Coo(self.cols, self.rows, self.values, self.weights)

    @property
    def columns(self) -> list[np.ndarray]:
        """The arrays of the cells: rows, cols, values and, where cells have them, weights."""
        return [array for array in (self.rows, self.cols, self.values, self.weights) if array is not None]


def list_row_groups(paths: Sequence[str]) -> list[RowGroup]:
    """The row groups of all files, in the order of the files.

    Raises
    ------
    InputError
        A file is missing or is not Parquet.
    """
    found = []
    for path in paths:
        fs, local = storage.filesystem(path)
        try:
            with fs.open_input_file(local) as source:
                footer = pq.read_metadata(source)
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(
                f"matrix file {path} cannot be read: {error}; the stage that wrote it must run again"
            ) from error
        found += [RowGroup(path, i, footer.row_group(i).num_rows) for i in range(footer.num_row_groups)]
    return found


def rank_row_groups(found: Sequence[RowGroup], rank: int, ranks: int) -> list[RowGroup]:
    """The row groups that a rank reads: consecutive ones, with nearly the same number of rows for every rank."""
    total = sum(group.rows for group in found)
    mine, before = [], 0
    for group in found:
        middle = before + group.rows / 2
        if rank * total <= middle * ranks < (rank + 1) * total:
            mine.append(group)
        before += group.rows
    return mine


def read_coo(
    paths: Sequence[str],
    rank: int,
    ranks: int,
    shape: tuple[int, int],
    value: str = "units",
    *,
    weight: str | None = None,
    signed: bool = False,
) -> Coo:
    """The cells of a rank's row groups, all at once.

    Parameters
    ----------
    paths : sequence of str
        Parquet files with the columns ``row_id``, ``col_id`` and `value`.
    rank, ranks : int
        Number of this rank and of all ranks; see `rank_row_groups`.
    shape : (int, int)
        Rows and columns of the matrix.
    value : str
        Column of the values.
    weight : str or None
        Column of the weights of cells; None = cells have none.
    signed : bool
        Whether values may be negative.

    Returns
    -------
    Coo

    Raises
    ------
    InputError
        As `read_coo_batches`.
    """
    nothing, *parts = read_coo_batches(paths, rank, ranks, shape, value, weight=weight, signed=signed)
    return _joined(parts or [nothing])


def read_coo_batches(
    paths: Sequence[str],
    rank: int,
    ranks: int,
    shape: tuple[int, int],
    value: str = "units",
    *,
    weight: str | None = None,
    signed: bool = False,
) -> Iterator[Coo]:
    """The cells of a rank's row groups, at most `BATCH_ENTRIES` at a time.

    Parameters
    ----------
    paths : sequence of str
        Parquet files with the columns ``row_id``, ``col_id`` and `value`.
    rank, ranks : int
        Number of this rank and of all ranks; see `rank_row_groups`.
    shape : (int, int)
        Rows and columns of the matrix.
    value : str
        Column of the values.
    weight : str or None
        Column of the weights of cells; None = cells have none.
    signed : bool
        Whether values may be negative.

    Yields
    ------
    Coo
        The first one is empty and has the dtypes of all: a rank without cells has something to send.

    Raises
    ------
    InputError
        A column is missing, a cell is null, an id is outside the matrix, a value is NaN or infinite, or
        negative unless `signed`; a weight is negative.
    """
    names = [ROW, COL, value] + ([weight] if weight is not None else [])
    yield _no_cells(paths, names)
    for group in rank_row_groups(list_row_groups(paths), rank, ranks):
        with _opened(group.path, names) as source:
            for batch in source.iter_batches(BATCH_ENTRIES, row_groups=[group.number], columns=names):
                yield _checked(pa.Table.from_batches([batch]), names, group.path, shape, signed)


@contextmanager
def _opened(path: str, names: Sequence[str]) -> Iterator[pq.ParquetFile]:
    fs, local = storage.filesystem(path)
    try:
        with fs.open_input_file(local) as stream:
            source = pq.ParquetFile(stream)
            missing = set(names) - set(source.schema_arrow.names)
            if missing:
                raise InputError(
                    f"matrix file {path} has no column {', '.join(sorted(missing))}; expected {', '.join(names)}"
                )
            yield source
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"matrix file {path} cannot be read: {error}; the stage that wrote it must run again"
        ) from error


def _checked(table: pa.Table, names: Sequence[str], path: str, shape: tuple[int, int], signed: bool) -> Coo:
    for name in names:
        if table[name].null_count:
            raise InputError(f"matrix file {path}: {table[name].null_count} values of {name} are null")
    rows, cols, values, *weights = (table[name].to_numpy() for name in names)
    _check_ids(rows, cols, shape, path)
    _check_numbers(values, "values", path, signed)
    for numbers in weights:
        _check_numbers(numbers, "weights", path, signed=False)
    # Ranks send values to each other, so these have one dtype whatever the files.
    exact = values.dtype.kind in "iu" and not weights
    values = values.astype(np.int64 if exact else np.float64, copy=False)
    weight = weights[0].astype(np.float64, copy=False) if weights else None
    return Coo(rows.astype(np.int32, copy=False), cols.astype(np.int32, copy=False), values, weight)


def _no_cells(paths: Sequence[str], names: Sequence[str]) -> Coo:
    """No cells, with the dtypes of the files: a rank without cells sends arrays of the same dtypes as all others."""
    exact = True
    if paths:
        with _opened(paths[0], names) as source:
            exact = pa.types.is_integer(source.schema_arrow.field(names[2]).type)
    ids, weighted = np.zeros(0, np.int32), len(names) > 3
    values = np.zeros(0, np.int64 if exact and not weighted else np.float64)
    return Coo(ids, ids, values, np.zeros(0) if weighted else None)


def _joined(parts: Sequence[Coo]) -> Coo:
    return Coo(*(np.concatenate(arrays) for arrays in zip(*(part.columns for part in parts), strict=True)))


def _check_ids(rows: np.ndarray, cols: np.ndarray, shape: tuple[int, int], path: str) -> None:
    for name, ids, size in ((ROW, rows, shape[0]), (COL, cols, shape[1])):
        if len(ids) and (ids.min() < 0 or ids.max() >= size):
            worst = int(ids.min()) if ids.min() < 0 else int(ids.max())
            raise InputError(f"matrix file {path}: {name} {worst} is outside the matrix, expected 0 .. {size - 1}")


def _check_numbers(numbers: np.ndarray, what: str, path: str, signed: bool) -> None:
    if numbers.dtype.kind == "f" and not np.isfinite(numbers).all():
        bad = int((~np.isfinite(numbers)).sum())
        raise InputError(f"matrix file {path}: {bad} {what} are NaN or infinite; remove or repair these cells")
    if not signed and len(numbers) and numbers.min() < 0:
        bad = int((numbers < 0).sum())
        raise InputError(f"matrix file {path}: {bad} {what} are negative (the least is {numbers.min()})")
