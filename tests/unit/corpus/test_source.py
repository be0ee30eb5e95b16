from __future__ import annotations

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wals_spark.config import CorpusConfig
from wals_spark.corpus.source import (
    InputSplit,
    check_columns,
    file_identities,
    group_splits,
    input_splits,
    list_sources,
)
from wals_spark.errors import InputError


def touch(root, *names, content=b"x"):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def names(*paths, **keys):
    return [file.name for file in list_sources(CorpusConfig(path=tuple(map(str, paths)), **keys))]


def test_a_directory_gives_its_files_in_order_without_hidden_ones(tmp_path):
    touch(tmp_path, "b.txt", "a/z.txt", ".hidden.txt", "_SUCCESS", "a/_temporary/x.txt", "c.txt.gz")
    assert names(tmp_path) == ["a/z.txt", "b.txt", "c.txt.gz"]


def test_formats_and_compressions_go_by_the_ending(tmp_path):
    touch(tmp_path, "a.txt", "b.jsonl.gz", "c.ndjson.zst", "d.parquet", "e.csv", "readme.md")
    files = list_sources(CorpusConfig(path=str(tmp_path)))
    assert [(file.format, file.compression) for file in files] == [
        ("text_files", None),
        ("jsonl", "gzip"),
        ("jsonl", "zstd"),
        ("parquet", None),
        ("csv", None),
    ]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.txt", ["a.txt", "b.txt"]),
        ("**/*.txt", ["a.txt", "b.txt", "sub/c.txt", "sub/deep/d.txt"]),
        ("sub/?.txt", ["c.txt"]),
        ("[!a].txt", ["b.txt"]),
    ],
)
def test_globs(tmp_path, pattern, expected):
    touch(tmp_path, "a.txt", "b.txt", "sub/c.txt", "sub/deep/d.txt", "x.parquet")
    assert names(tmp_path / pattern) == expected


def test_a_name_with_glob_characters_is_taken_as_it_is(tmp_path):
    touch(tmp_path, "a[1].txt", "a1.txt")
    assert names(tmp_path / "a[1].txt") == ["a[1].txt"]


def test_lists_of_paths_are_merged_and_named_below_their_common_directory(tmp_path):
    touch(tmp_path, "one/a.txt", "two/a.txt")
    assert names(tmp_path / "two", tmp_path / "one" / "a.txt", tmp_path / "one") == ["one/a.txt", "two/a.txt"]


@pytest.mark.parametrize(
    ("path", "message"),
    [("absent", "there is nothing at"), ("*.absent", "no file matches"), ("empty", "holds no files")],
)
def test_paths_without_files_are_refused(tmp_path, path, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        names(tmp_path / path)


def test_unknown_endings_are_refused_with_the_way_out(tmp_path):
    touch(tmp_path, "a.md")
    with pytest.raises(InputError, match=r"found a\.md.*set corpus\.format"):
        names(tmp_path)
    assert names(tmp_path, format="text_files") == ["a.md"]


def test_no_path_is_refused():
    with pytest.raises(InputError, match=r"corpus\.path is empty"):
        list_sources(CorpusConfig())


def test_identity_changes_with_a_file(tmp_path):
    touch(tmp_path, "a.txt")
    before = file_identities(list_sources(CorpusConfig(path=str(tmp_path))))
    touch(tmp_path, "a.txt", content=b"xy")
    os.utime(tmp_path / "a.txt", ns=(1, 1))
    after = file_identities(list_sources(CorpusConfig(path=str(tmp_path))))
    assert [entry[2:] for entry in after] == [[2, 1]]
    assert before != after


def test_a_wrong_column_is_refused_with_the_columns_there_are(tmp_path):
    pq.write_table(pa.table({"id": ["a"], "body": ["b"]}), tmp_path / "a.parquet")
    config = CorpusConfig(path=str(tmp_path))
    with pytest.raises(InputError, match=r"no column 'text' \(corpus\.text_column\); its columns are id, body"):
        check_columns(list_sources(config), config)


def test_a_column_of_numbers_is_no_text(tmp_path):
    pq.write_table(pa.table({"text": [1.5]}), tmp_path / "a.parquet")
    config = CorpusConfig(path=str(tmp_path))
    with pytest.raises(InputError, match="holds double, expected text"):
        check_columns(list_sources(config), config)


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    touch(tmp_path, "bad.parquet", content=b"no parquet at all")
    config = CorpusConfig(path=str(tmp_path))
    with pytest.raises(InputError, match=r"bad\.parquet cannot be decoded"):
        check_columns(list_sources(config), config)


def test_a_large_text_file_is_cut_and_a_compressed_one_is_not(tmp_path):
    touch(tmp_path, "a.txt", "b.txt.gz", content=b"x" * 1000)
    files = list_sources(CorpusConfig(path=str(tmp_path), format="text"))
    units = input_splits(files, 300)
    assert [(unit.file.name, unit.start, unit.stop) for unit in units] == [
        ("a.txt", 0, 250),
        ("a.txt", 250, 500),
        ("a.txt", 500, 750),
        ("a.txt", 750, 1000),
        ("b.txt.gz", 0, None),
    ]


def test_a_large_parquet_file_is_cut_at_row_groups(tmp_path):
    table = pa.table({"text": [os.urandom(500).hex() for _ in range(40)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10)
    units = input_splits(list_sources(CorpusConfig(path=str(tmp_path))), 20_000)
    assert [(unit.start, unit.stop) for unit in units] == [(0, 1), (1, 2), (2, 3), (3, 4)]


def test_packing_keeps_order_and_balances(tmp_path):
    touch(tmp_path, *(f"{n}.txt" for n in range(10)), content=b"x" * 100)
    units = [InputSplit(file) for file in list_sources(CorpusConfig(path=str(tmp_path)))]
    packed = group_splits(units, 4)
    assert [unit for part in packed for unit in part] == units
    assert sorted(map(len, packed)) == [2, 2, 3, 3]
    assert [len(part) for part in group_splits(units, 100)] == [1] * 10
