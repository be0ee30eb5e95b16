"""Factors read from files that a table may have."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wals_spark.errors import InputError
from wals_spark.factors.store import read_side, read_tokens
from wals_spark.tables.base import DataFile

SCHEMA = pa.schema(
    [
        ("token_id", pa.int32()),
        ("token", pa.string()),
        ("count", pa.int64()),
        ("vector", pa.list_(pa.float32())),
        ("bias", pa.float32()),
    ]
)


class Files:
    """Of a table store: the files of the table of factors."""

    warehouse = "w"

    def __init__(self, directory, *ids):
        self.found = []
        for number, part in enumerate(ids):
            path = directory / f"{number}.parquet"
            rows = [{"token_id": i, "token": f"t{i}", "count": i, "vector": [i, 1], "bias": 0} for i in part]
            pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path)
            self.found.append(DataFile(str(path), len(part), path.stat().st_size, {"side": "row"}))

    def files(self, table, where):
        return self.found


@pytest.mark.parametrize("parts", [([], [1, 0], [2]), ([2, 0], [], [1]), ([0, 1, 2], [])])
def test_files_without_rows_change_nothing(tmp_path, parts):
    tables = Files(tmp_path, *parts)
    found = read_side(tables, "r", "row")
    assert found.matrix.tolist() == [[0, 1], [1, 1], [2, 1]]
    assert (found.tokens, found.counts.tolist()) == (["t0", "t1", "t2"], [0, 1, 2])
    assert np.array_equal(read_tokens(tables, "r")[1], [0, 1, 2])


def test_a_table_without_rows_is_named(tmp_path):
    with pytest.raises(InputError, match="side 'row': the table holds no rows"):
        read_side(Files(tmp_path, []), "r", "row")
