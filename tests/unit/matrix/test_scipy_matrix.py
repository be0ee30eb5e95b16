"""Counts as a SciPy matrix."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wals_spark.errors import InputError
from wals_spark.matrix import to_scipy


def cells(rows, cols, units):
    return pa.table({"row_id": pa.array(rows, pa.int32()), "col_id": pa.array(cols, pa.int32()), "units": units})


def test_files_of_several_batches_are_summed(tmp_path):
    pq.write_table(cells([0, 1], [1, 0], [5, 5]), tmp_path / "a.parquet")
    pq.write_table(cells([0, 2], [1, 2], [1, 7]), tmp_path / "b.parquet")
    matrix = to_scipy([str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")], shape=(4, 4))
    assert matrix.dtype == np.int64
    assert matrix.toarray().tolist() == [[0, 6, 0, 0], [5, 0, 0, 0], [0, 0, 7, 0], [0, 0, 0, 0]]


def test_units_become_weights():
    matrix = to_scipy(cells([0], [1], [3]), unit=2)
    assert matrix.shape == (1, 2)
    assert matrix[0, 1] == 1.5


def test_nothing_is_an_empty_matrix():
    assert to_scipy([], shape=(3, 3)).nnz == 0


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (cells([0], [9], [1]), "outside the shape"),
        (cells([0], [1], [-1]), "negative ids or counts"),
        (cells([0, 0], [1, 1], [2**62, 2**62]), "overflow an int64"),
    ],
    ids=["shape", "negative", "overflow"],
)
def test_bad_cells_are_refused(table, message):
    with pytest.raises(InputError, match=message):
        to_scipy(table, shape=(2, 2))
