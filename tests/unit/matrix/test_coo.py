"""Parquet files to cells: shares of ranks and bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wals_spark.errors import InputError
from wals_spark.matrix.coo import list_row_groups, rank_row_groups, read_coo


def write(path: Path, **changed: Any) -> str:
    columns: dict[str, Any] = {
        "row_id": np.arange(100, dtype=np.int32) % 10,
        "col_id": np.arange(100, dtype=np.int32) // 10,
        "units": np.arange(100, dtype=np.int64),
    }
    columns.update(changed)
    pq.write_table(
        pa.table({name: value for name, value in columns.items() if value is not None}), path, row_group_size=7
    )
    return str(path)


@pytest.mark.parametrize("ranks", [1, 2, 3, 40])
def test_every_row_group_belongs_to_one_rank(tmp_path: Path, ranks: int) -> None:
    paths = [write(tmp_path / "a.parquet"), write(tmp_path / "b.parquet")]
    found = list_row_groups(paths)
    shares = [rank_row_groups(found, rank, ranks) for rank in range(ranks)]
    assert [portion for part in shares for portion in part] == found
    assert max(sum(portion.rows for portion in part) for part in shares) <= 200 // ranks + 7


def test_shares_of_all_ranks_are_the_matrix(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.parquet")]
    parts = [read_coo(paths, rank, 3, (10, 10)) for rank in range(3)]
    assert np.concatenate([part.values for part in parts]).tolist() == list(range(100))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"row_id": np.full(100, 10, np.int32)}, r"row_id 10 is outside the matrix, expected 0 .. 9"),
        ({"col_id": np.full(100, -1, np.int32)}, r"col_id -1 is outside the matrix"),
        ({"col_id": np.full(100, 2**40)}, r"col_id 1099511627776 is outside the matrix"),
        ({"units": None}, r"no column units"),
        ({"units": pa.array([None] + [1] * 99, pa.int64())}, r"1 values of units are null"),
        ({"units": np.r_[np.nan, np.ones(99)]}, r"1 values are NaN or infinite"),
        ({"units": np.r_[-3, np.ones(99, np.int64)]}, r"1 values are negative \(the least is -3\)"),
    ],
    ids=["row", "column", "beyond int32", "missing", "null", "nan", "negative"],
)
def test_bad_cells_name_the_file_and_the_fault(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "bad.parquet", **changed)
    with pytest.raises(InputError, match=message) as caught:
        read_coo([path], 0, 1, (10, 10))
    assert path in str(caught.value)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "cut.parquet"))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"cut.parquet cannot be read"):
        read_coo([str(path)], 0, 1, (10, 10))
