"""Delta tables: what Spark writes, our log reader, Spark and an independent reader must agree on."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wals_spark import schemas
from wals_spark.errors import ConfigError, InputError
from wals_spark.tables import delta_log

pytestmark = [pytest.mark.spark, pytest.mark.delta]

TABLE = schemas.MARGINALS


def rows(*units):
    ids = range(len(units))
    return pa.table({"token_id": pa.array(ids, pa.int32()), "row_units": list(units), "col_units": list(units)})


def units_of(files):
    return sorted(unit for data_file in files for unit in pq.read_table(data_file.path)["row_units"].to_pylist())


def through_spark(tables, batch, **options):
    return sorted(row.row_units for row in tables.read(TABLE, {"batch_id": batch}, **options).collect())


@pytest.fixture
def tables(make_context):
    return make_context(table_format="delta").tables


def test_slices_are_replaced_folded_and_dropped(tables):
    tables.replace_rows(TABLE, rows(1, 2), {"batch_id": "a"})
    first = tables.replace_rows(TABLE, rows(5), {"batch_id": "b"})
    second = tables.replace_rows(TABLE, rows(3), {"batch_id": "a"})
    assert int(second) == int(first) + 1
    assert tables.values(TABLE) == ["a", "b"]
    assert units_of(tables.files(TABLE, {"batch_id": "a"})) == through_spark(tables, "a") == [3]
    assert through_spark(tables, "a", version=first) == [1, 2]
    assert units_of(tables.files(TABLE, {"batch_id": "a"}, version=first)) == [1, 2]
    tables.replace_rows(TABLE, rows(8), {"batch_id": "a"}, instead_of=[{"batch_id": "b"}])
    assert tables.values(TABLE) == ["a"]
    assert units_of(tables.files(TABLE)) == [8]
    assert tables.drop(TABLE, {"batch_id": "a"})
    assert not tables.drop(TABLE, {"batch_id": "a"})
    with pytest.raises(InputError, match="has no rows"):
        tables.files(TABLE, {"batch_id": "a"})


def test_independent_reader_and_log_reader_agree(tables, spark):
    deltalake = pytest.importorskip("deltalake")
    key = "spark.databricks.delta.properties.defaults.checkpointInterval"
    spark.conf.set(key, "2")
    try:
        for number in range(4):
            tables.replace_rows(TABLE, rows(number, 10 + number), {"batch_id": f"b{number % 3}"})
    finally:
        spark.conf.unset(key)
    path = tables.path(TABLE)
    assert any("checkpoint" in name.name for name in Path(path, "_delta_log").iterdir())
    independent = deltalake.DeltaTable(path)
    assert str(independent.version()) == tables.version(TABLE)
    found = independent.to_pyarrow_table().to_pylist()
    assert sorted((row["batch_id"], row["token_id"], row["row_units"]) for row in found) == [
        ("b0", 0, 3), ("b0", 1, 13), ("b1", 0, 1), ("b1", 1, 11), ("b2", 0, 2), ("b2", 1, 12),
    ]  # fmt: skip
    for version in range(4):
        independent.load_as_version(version)
        theirs = {uri.rpartition("/")[2] for uri in independent.file_uris()}
        ours = {entry.path.rpartition("/")[2] for entry in delta_log.active_files(path, version)}
        assert ours == theirs


def test_other_columns_are_refused(tables):
    from pyspark.errors import AnalysisException

    tables.replace_rows(TABLE, rows(1), {"batch_id": "a"})
    frame = tables.session().createDataFrame([(0, "text", 1)], "token_id int, row_units string, col_units bigint")
    with pytest.raises(AnalysisException):
        tables.replace(TABLE, frame, {"batch_id": "a"})
    assert through_spark(tables, "a") == [1]


def test_maintenance_has_a_floor_and_keeps_the_rows(tables):
    tables.replace_rows(TABLE, rows(1), {"batch_id": "a"})
    tables.replace_rows(TABLE, rows(2), {"batch_id": "a"})
    with pytest.raises(ConfigError, match="retain_hours is 24, expected at least 168"):
        tables.maintain(TABLE, 24)
    assert tables.maintain(TABLE, 168)["removed_files"] == 0
    assert units_of(tables.files(TABLE, {"batch_id": "a"})) == [2]


def test_a_lost_file_is_named(tables):
    tables.replace_rows(TABLE, rows(1), {"batch_id": "a"})
    path = tables.files(TABLE, {"batch_id": "a"})[0].path
    Path(path).unlink()
    with pytest.raises(InputError, match="is not there, the Delta log says"):
        tables.files(TABLE, {"batch_id": "a"})
