"""Slices of Parquet tables: replaced, dropped, recovered after a kill at any step; no Spark needed."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wals_spark import schemas, storage
from wals_spark.errors import ConfigError, InputError
from wals_spark.tables.parquet import COMMIT, STAGING, ParquetTables, partition_directory, partition_values

TABLE = schemas.MARGINALS


def no_session():
    raise AssertionError("no Spark session is needed")


@pytest.fixture
def tables(tmp_path):
    return ParquetTables(str(tmp_path / "warehouse"), no_session)


def rows(*units):
    ids = range(len(units))
    return pa.table({"token_id": pa.array(ids, pa.int32()), "row_units": list(units), "col_units": list(units)})


def read(tables, batch):
    files = tables.files(TABLE, {"batch_id": batch})
    return [unit for data_file in files for unit in pq.read_table(data_file.path)["row_units"].to_pylist()]


def plain_read(tables):
    """What a reader that knows nothing of ours sees: every Parquet file not below a ``_`` name."""
    root = Path(tables.path(TABLE))
    return {
        str(path.relative_to(root))
        for path in root.rglob("*.parquet")
        if not any(part.startswith("_") for part in path.relative_to(root).parts)
    }


def placed(tables, batch):
    """Where the one file of a batch stands."""
    return f"batch_id={batch}/part-00000-{tables.version(TABLE, {'batch_id': batch})}.parquet"


def test_replace_reads_back_and_replaces(tables):
    first = tables.replace_rows(TABLE, rows(1, 2), {"batch_id": "a"})
    tables.replace_rows(TABLE, rows(5), {"batch_id": "b"})
    second = tables.replace_rows(TABLE, rows(3), {"batch_id": "a"})
    assert first != second == tables.version(TABLE, {"batch_id": "a"})
    assert read(tables, "a") == [3]
    assert read(tables, "b") == [5]
    assert tables.values(TABLE) == ["a", "b"]
    assert plain_read(tables) == {placed(tables, "a"), placed(tables, "b")}


def test_files_listed_before_a_replacement_are_gone_after_it_never_others(tables):
    tables.replace_rows(TABLE, rows(1, 2), {"batch_id": "a"})
    (listed,) = tables.files(TABLE, {"batch_id": "a"})
    tables.replace_rows(TABLE, rows(3), {"batch_id": "a"})
    with pytest.raises(FileNotFoundError):
        listed.read(["row_units"])


def test_drop(tables):
    tables.replace_rows(TABLE, rows(1), {"batch_id": "a"})
    assert tables.drop(TABLE, {"batch_id": "a"})
    assert not tables.drop(TABLE, {"batch_id": "a"})
    assert tables.values(TABLE) == []
    with pytest.raises(InputError, match=r"table marginals \(batch_id=a\) is not in"):
        tables.files(TABLE, {"batch_id": "a"})


def test_an_error_in_the_block_leaves_the_old_slice(tables):
    tables.replace_rows(TABLE, rows(1), {"batch_id": "a"})
    with pytest.raises(RuntimeError, match="boom"), tables.staged_slice(TABLE, {"batch_id": "a"}):
        raise RuntimeError("boom")
    assert read(tables, "a") == [1]
    assert storage.list_files(storage.join(tables.path(TABLE), STAGING)) == []


def test_attempt_files_are_not_part_of_the_slice(tables):
    with tables.staged_slice(TABLE, {"batch_id": "a"}) as staging:
        table = rows(4).cast(TABLE.arrow(partitions=False))
        pq.write_table(table, f"{staging}/part-00000.parquet")
        pq.write_table(table, f"{staging}/_part-00000.parquet.123")
    assert read(tables, "a") == [4]
    assert not list(Path(tables.path(TABLE)).rglob("_part*"))


def test_other_columns_are_refused(tables):
    with (
        pytest.raises(InputError, match=r"was staged with columns \['x'\]"),
        tables.staged_slice(TABLE, {"batch_id": "a"}) as at,
    ):
        pq.write_table(pa.table({"x": [1]}), f"{at}/part-00000.parquet")
    assert tables.values(TABLE) == []


def test_a_lost_and_a_cut_file_are_named(tables):
    tables.replace_rows(TABLE, rows(1), {"batch_id": "a"})
    path = Path(tables.files(TABLE, {"batch_id": "a"})[0].path)
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"has \d+ bytes, its _commit\.json says"):
        tables.files(TABLE, {"batch_id": "a"})
    path.unlink()
    with pytest.raises(InputError, match=r"part-00000-\w+\.parquet is not there"):
        tables.files(TABLE, {"batch_id": "a"})


def test_object_stores_without_rename_are_refused():
    with (
        pytest.raises(ConfigError, match="set table_format: delta"),
        ParquetTables("s3://bucket/w", no_session).staged_slice(TABLE, {"batch_id": "a"}),
    ):
        pass


def test_partition_values_survive_odd_characters():
    values = {"batch_id": "a b/c=%ü", "row_block": "3"}
    assert partition_values(f"{partition_directory(values)}/part.parquet") == values


STEPS = ["move", "remove", "write_json", "write_bytes", "make_directory"]


def killed_at(step, action):
    """Run `action` in a child process that is gone at its step-th change to the file system; None = it finished."""
    child = os.fork()
    if child == 0:
        done = 0

        def counting(function):
            def wrapper(*arguments, **options):
                nonlocal done
                done += 1
                if done == step:
                    os._exit(9)
                return function(*arguments, **options)

            return wrapper

        try:
            for name in STEPS:
                setattr(storage, name, counting(getattr(storage, name)))
            action()
            os._exit(0)
        except BaseException:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9), f"child ended with {status}"
    return status == 9


def test_a_kill_at_any_step_leaves_the_old_slice_or_the_new(tmp_path):
    seen = set()
    for step in range(1, 50):
        tables = ParquetTables(str(tmp_path / str(step)), no_session)
        tables.replace_rows(TABLE, rows(1, 2), {"batch_id": "a"})
        killed = killed_at(step, lambda tables=tables: tables.replace_rows(TABLE, rows(7), {"batch_id": "a"}))
        found = read(tables, "a")
        assert found in ([1, 2], [7])
        seen.add(len(found))
        tables.replace_rows(TABLE, rows(7), {"batch_id": "a"})
        assert read(tables, "a") == [7]
        assert plain_read(tables) == {placed(tables, "a")}
        assert storage.list_files(storage.join(tables.path(TABLE), STAGING)) == []
        if not killed:
            break
    assert not killed
    assert seen == {1, 2}


def test_a_kill_at_any_step_of_folding_leaves_the_parts_or_the_sum(tmp_path):
    seen = set()
    for step in range(1, 50):
        tables = ParquetTables(str(tmp_path / str(step)), no_session)
        for batch in "abc":
            tables.replace_rows(TABLE, rows(1), {"batch_id": batch})

        def fold(tables=tables):
            tables.replace_rows(TABLE, rows(3), {"batch_id": "a"}, instead_of=[{"batch_id": "b"}, {"batch_id": "c"}])

        killed = killed_at(step, fold)
        tables.recover(TABLE)
        state = {batch: read(tables, batch) for batch in tables.values(TABLE)}
        assert state in ({"a": [1], "b": [1], "c": [1]}, {"a": [3]})
        seen.add(len(state))
        if not killed:
            break
    assert not killed
    assert seen == {1, 3}


def test_a_killed_drop_can_be_repeated(tmp_path):
    for step in range(1, 20):
        tables = ParquetTables(str(tmp_path / str(step)), no_session)
        tables.replace_rows(TABLE, rows(1), {"batch_id": "a"})
        killed = killed_at(step, lambda tables=tables: tables.drop(TABLE, {"batch_id": "a"}))
        tables.drop(TABLE, {"batch_id": "a"})
        assert tables.values(TABLE) == []
        assert plain_read(tables) == set()
        if not killed:
            break
    assert not killed


def test_maintain_removes_what_killed_writers_left(tables):
    tables.replace_rows(TABLE, rows(1), {"batch_id": "a"})
    left = storage.join(tables.path(TABLE), STAGING, "batch_id=b.0123")
    storage.make_directory(left)
    assert tables.maintain(TABLE, 1.0) == {"removed_directories": 0}
    assert tables.maintain(TABLE, 0.0) == {"removed_directories": 1}
    assert not storage.exists(left)
    assert read(tables, "a") == [1]


def test_a_slice_without_its_list_of_files_is_not_trusted(tables):
    tables.replace_rows(TABLE, rows(1), {"batch_id": "a"})
    (Path(tables.directory(TABLE, {"batch_id": "a"})) / COMMIT).unlink()
    with pytest.raises(InputError, match="is not in"):
        tables.files(TABLE, {"batch_id": "a"})
