"""Delta tables as a corpus: their rows, whatever features they have, or the name of the feature."""

from __future__ import annotations

from collections import Counter

import deltalake
import pyarrow as pa
import pytest
from delta_tables import add, deletion_vector, field, remove, write_log

from wals_spark.config import CorpusConfig
from wals_spark.corpus.read import read_splits
from wals_spark.corpus.source import InputSplit, file_identities, input_splits, list_sources
from wals_spark.errors import InputError
from wals_spark.tables import delta_log

ROWS = pa.table({"id": ["a", "b", "c"], "text": ["one", "two", "three"]})


def documents(path, target=None, **keys):
    config = CorpusConfig(path=str(path), **{"id_column": "id", **keys})
    files = list_sources(config)
    splits = [InputSplit(file) for file in files] if target is None else input_splits(files, target)
    batches = read_splits(splits, config, Counter())
    return sorted((name, batch.text(index).decode()) for batch in batches for index, name in enumerate(batch.ids))


def test_the_files_of_a_version(tmp_path):
    path = str(tmp_path / "table")
    deltalake.write_deltalake(path, pa.table({"id": ["a"], "text": ["one"]}))
    deltalake.write_deltalake(path, pa.table({"id": ["b"], "text": ["two"]}), mode="append")
    deltalake.write_deltalake(path, pa.table({"id": ["c"], "text": ["three"]}), mode="overwrite")
    assert documents(path) == [("c", "three")]
    assert documents(path, delta_version=1) == [("a", "one"), ("b", "two")]
    with pytest.raises(InputError, match="has no version 9, its newest is 2"):
        documents(path, delta_version=9)


def test_the_files_after_a_checkpoint_whose_log_was_cleaned_up(tmp_path):
    path = tmp_path / "table"
    for number in range(4):
        deltalake.write_deltalake(str(path), pa.table({"id": [str(number)], "text": ["x"]}), mode="append")
    deltalake.DeltaTable(str(path)).create_checkpoint()
    for number in range(3):
        (path / "_delta_log" / f"{number:020}.json").unlink()
    assert [name for name, _ in documents(path)] == ["0", "1", "2", "3"]
    with pytest.raises(InputError, match=r"version 1 of the Delta table .* cannot be read"):
        documents(path, delta_version=1)


@pytest.mark.parametrize("target", [None, 1])
def test_deleted_rows_are_left_out_and_no_others(tmp_path, target):
    first = add(tmp_path, "a b.parquet", ROWS, uri="a%20b.parquet")
    later = {"add": {**first["add"], "deletionVector": deletion_vector([1])}}
    path = write_log(tmp_path, [first], [later, remove(first)], features=["deletionVectors"])
    assert documents(path, target, delta_version=0) == [("a", "one"), ("b", "two"), ("c", "three")]
    assert documents(path, target) == [("a", "one"), ("c", "three")]
    assert documents(path, target, id_column=None) == [("a b.parquet:0", "one"), ("a b.parquet:2", "three")]


def test_another_deletion_vector_is_another_corpus(tmp_path):
    action = add(tmp_path, "a.parquet", ROWS)
    found = []
    for rows in ([0], [1]):
        write_log(
            tmp_path,
            [{"add": {**action["add"], "deletionVector": deletion_vector(rows)}}],
            features=["deletionVectors"],
        )
        found.append(file_identities(list_sources(CorpusConfig(path=str(tmp_path)))))
    assert found[0] != found[1]


def test_columns_are_read_by_the_names_that_the_table_has(tmp_path):
    files = pa.table({"text": ["a"], "c1": [{"c2": "one"}], "id": ["other"]})
    inner = {"type": "struct", "fields": [field("raw", "c2")]}
    path = write_log(
        tmp_path,
        [add(tmp_path, "a.parquet", files)],
        features=["columnMapping"],
        conf={"delta.columnMapping.mode": "name", "delta.columnMapping.maxColumnId": "99"},
        fields=[field("id", "text"), field("text", "c1", inner), field("other", "id")],
    )
    assert documents(path, text_column="text.raw") == [("a", "one")]
    assert documents(path, text_column="other") == [("a", "other")]


def test_line_separators_in_statistics_are_no_line_ends(tmp_path):
    stats = {"minValues": {"text": "a\u2028b\u0085c\x1ed"}, "maxValues": {"text": "z\u2029"}}
    assert documents(write_log(tmp_path, [add(tmp_path, "a.parquet", ROWS, stats=stats)])) == documents_of(ROWS)


def documents_of(table):
    return list(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))


def test_a_shallow_clone_reads_the_files_of_the_other_table(tmp_path):
    action = add(tmp_path / "one two", "a.parquet", ROWS, uri=(tmp_path / "one two" / "a.parquet").as_uri())
    assert documents(write_log(tmp_path / "clone", [action])) == documents_of(ROWS)


def test_an_unknown_feature_is_refused_by_its_name(tmp_path):
    path = write_log(tmp_path, [add(tmp_path, "a.parquet", ROWS)], features=["brandNewThing"])
    with pytest.raises(InputError, match=r"cannot be read: .*brandNewThing"):
        documents(path)


def test_columns_mapped_by_ids_are_refused(tmp_path):
    path = write_log(
        tmp_path,
        [add(tmp_path, "a.parquet", ROWS)],
        features=["columnMapping"],
        conf={"delta.columnMapping.mode": "id", "delta.columnMapping.maxColumnId": "99"},
        fields=[field("id", "id"), field("text", "text")],
    )
    with pytest.raises(InputError, match=r"columnMapping with delta\.columnMapping\.mode 'id'"):
        documents(path)


def test_tables_within_a_directory_and_by_a_glob_are_read_as_tables(tmp_path):
    old = add(tmp_path / "lake" / "one", "old.parquet", pa.table({"id": ["z"], "text": ["gone"]}))
    write_log(tmp_path / "lake" / "one", [old], [remove(old), add(tmp_path / "lake" / "one", "a.parquet", ROWS)])
    for path in (tmp_path, tmp_path / "l*", tmp_path / "lake" / "*"):
        assert documents(path) == documents_of(ROWS)
    with pytest.raises(InputError, match=r"lake/one is a Delta table, whose files are not its rows"):
        documents(tmp_path, format="parquet")


def test_a_directory_that_is_no_delta_table_is_refused(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(InputError, match="is no Delta table"):
        documents(tmp_path, format="delta")


@pytest.mark.parametrize("odd", ["a[b]{c}", "with space", "100%", "#x?y", "grün"])
def test_any_characters_in_the_path_of_a_table(tmp_path, odd):
    path = write_log(tmp_path / odd, [add(tmp_path / odd, "a.parquet", ROWS)])
    assert documents(path) == documents_of(ROWS)


@pytest.mark.parametrize("odd", ["per%20cent", "back\\slash"])
def test_a_path_that_deltalake_cannot_open_is_named(tmp_path, odd):
    path = write_log(tmp_path / odd, [add(tmp_path / odd, "a.parquet", ROWS)])
    with pytest.raises(InputError, match="for another character; rename the directory"):
        documents(path)


def test_partition_values_and_rows_of_files(tmp_path):
    path = str(tmp_path / "table")
    rows = pa.table({"batch_id": ["x y", "x y", "z=1"], "block": [1, 1, 2], "n": [1, 2, 3]})
    deltalake.write_deltalake(path, rows, partition_by=["batch_id", "block"])
    files = delta_log.active_files(path)
    assert [(file.values, file.rows) for file in files] == [
        ({"batch_id": "x y", "block": "1"}, 2), ({"batch_id": "z=1", "block": "2"}, 1)
    ]  # fmt: skip
