"""Parquet files of (row_id, col_id, value) to arrays, a share of the row groups per rank."""

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
CELLS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Portion:
    """A row group of a file.

    Attributes
    ----------
    path : str
    group : int
    rows : int
    """

    path: str
    group: int
    rows: int


@dataclass(frozen=True)
class Cells:
    """Cells of a sparse matrix in no particular order.

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
    def transposed(self) -> Cells:
        """With rows and columns exchanged."""
        return Cells(self.cols, self.rows, self.values, self.weights)

    @property
    def columns(self) -> list[np.ndarray]:
        """The arrays that there are."""
        return [array for array in (self.rows, self.cols, self.values, self.weights) if array is not None]


def portions(paths: Sequence[str]) -> list[Portion]:
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
        found += [Portion(path, i, footer.row_group(i).num_rows) for i in range(footer.num_row_groups)]
    return found


def share(found: Sequence[Portion], rank: int, ranks: int) -> list[Portion]:
    """The portions of a rank: consecutive ones, of nearly equal numbers of rows for all ranks."""
    total = sum(portion.rows for portion in found)
    mine, before = [], 0
    for portion in found:
        middle = before + portion.rows / 2
        if rank * total <= middle * ranks < (rank + 1) * total:
            mine.append(portion)
        before += portion.rows
    return mine


def read_share(
    paths: Sequence[str],
    rank: int,
    ranks: int,
    shape: tuple[int, int],
    value: str = "units",
    *,
    weight: str | None = None,
    signed: bool = False,
) -> Cells:
    """All cells of `read_portions`, in one piece."""
    nothing, *parts = read_portions(paths, rank, ranks, shape, value, weight=weight, signed=signed)
    return _joined(parts or [nothing])


def read_portions(
    paths: Sequence[str],
    rank: int,
    ranks: int,
    shape: tuple[int, int],
    value: str = "units",
    *,
    weight: str | None = None,
    signed: bool = False,
) -> Iterator[Cells]:
    """The cells of a rank's `share` of the files, at most `CELLS_AT_ONCE` at a time; the first portion is empty.

    Raises
    ------
    InputError
        A column is missing, a cell is null, an id is outside the matrix, a value is NaN or infinite, or
        negative unless `signed`; a weight is negative.
    """
    names = [ROW, COL, value] + ([weight] if weight is not None else [])
    yield _no_cells(paths, names)
    for portion in share(portions(paths), rank, ranks):
        with _opened(portion.path, names) as source:
            for batch in source.iter_batches(CELLS_AT_ONCE, row_groups=[portion.group], columns=names):
                yield _checked(pa.Table.from_batches([batch]), names, portion.path, shape, signed)


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


def _checked(table: pa.Table, names: Sequence[str], path: str, shape: tuple[int, int], signed: bool) -> Cells:
    for name in names:
        if table[name].null_count:
            raise InputError(f"matrix file {path}: {table[name].null_count} values of {name} are null")
    rows, cols, values, *weights = (table[name].to_numpy() for name in names)
    _check_ids(rows, cols, shape, path)
    _check_numbers(values, "values", path, signed)
    for numbers in weights:
        _check_numbers(numbers, "weights", path, signed=False)
    # Ranks exchange values, so these have one dtype whatever the files.
    exact = values.dtype.kind in "iu" and not weights
    values = values.astype(np.int64 if exact else np.float64, copy=False)
    weight = weights[0].astype(np.float64, copy=False) if weights else None
    return Cells(rows.astype(np.int32, copy=False), cols.astype(np.int32, copy=False), values, weight)


def _no_cells(paths: Sequence[str], names: Sequence[str]) -> Cells:
    """Empty, of the dtypes of the files: what a rank without cells sends must look like what others send."""
    exact = True
    if paths:
        with _opened(paths[0], names) as source:
            exact = pa.types.is_integer(source.schema_arrow.field(names[2]).type)
    ids, weighted = np.zeros(0, np.int32), len(names) > 3
    values = np.zeros(0, np.int64 if exact and not weighted else np.float64)
    return Cells(ids, ids, values, np.zeros(0) if weighted else None)


def _joined(parts: Sequence[Cells]) -> Cells:
    return Cells(*(np.concatenate(arrays) for arrays in zip(*(part.columns for part in parts), strict=True)))


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
