"""Parquet files of (row_id, col_id, value) to arrays, a share of the row groups per rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wals_spark import storage
from wals_spark.errors import InputError

ROW, COL = "row_id", "col_id"


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
    """

    rows: np.ndarray
    cols: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def transposed(self) -> Cells:
        """With rows and columns exchanged."""
        return Cells(self.cols, self.rows, self.values)


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


def read_portion(portion: Portion, shape: tuple[int, int], value: str = "units", *, signed: bool = False) -> Cells:
    """The cells of a row group, checked.

    Raises
    ------
    InputError
        A column is missing, a cell is null, an id is outside the matrix, a value is NaN or infinite, or
        negative unless `signed`.
    """
    fs, local = storage.filesystem(portion.path)
    try:
        with fs.open_input_file(local) as source:
            table = pq.ParquetFile(source).read_row_group(portion.group, columns=[ROW, COL, value])
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"matrix file {portion.path} cannot be read: {error}; the stage that wrote it must run again"
        ) from error
    missing = {ROW, COL, value} - set(table.column_names)
    if missing:
        raise InputError(
            f"matrix file {portion.path} has no column {', '.join(sorted(missing))}; expected {ROW}, {COL}, {value}"
        )
    for name in (ROW, COL, value):
        if table[name].null_count:
            raise InputError(f"matrix file {portion.path}: {table[name].null_count} values of {name} are null")
    cells = Cells(*(_array(table[name]) for name in (ROW, COL, value)))
    _check(cells, shape, portion.path, signed)
    rows, cols = cells.rows.astype(np.int32, copy=False), cells.cols.astype(np.int32, copy=False)
    return Cells(rows, cols, cells.values)


def read_share(
    paths: Sequence[str], rank: int, ranks: int, shape: tuple[int, int], value: str = "units", *, signed: bool = False
) -> Cells:
    """All cells of a rank's `share` of the files, in one piece."""
    mine = share(portions(paths), rank, ranks)
    parts = [read_portion(portion, shape, value, signed=signed) for portion in mine]
    if not parts:
        dtype = np.int64 if value == "units" else np.float64
        return Cells(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, dtype))
    return Cells(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("rows", "cols", "values")))


def _array(column: pa.ChunkedArray) -> np.ndarray:
    return column.to_numpy()


def _check(cells: Cells, shape: tuple[int, int], path: str, signed: bool) -> None:
    for name, ids, size in ((ROW, cells.rows, shape[0]), (COL, cells.cols, shape[1])):
        if len(ids) and (ids.min() < 0 or ids.max() >= size):
            worst = int(ids.min()) if ids.min() < 0 else int(ids.max())
            raise InputError(f"matrix file {path}: {name} {worst} is outside the matrix, expected 0 .. {size - 1}")
    if cells.values.dtype.kind == "f" and not np.isfinite(cells.values).all():
        bad = int((~np.isfinite(cells.values)).sum())
        raise InputError(f"matrix file {path}: {bad} values are NaN or infinite; remove or repair these cells")
    if not signed and len(cells) and cells.values.min() < 0:
        bad = int((cells.values < 0).sum())
        raise InputError(f"matrix file {path}: {bad} values are negative (the least is {cells.values.min()})")
