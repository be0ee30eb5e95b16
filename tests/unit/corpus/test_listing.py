"""Which files a directory and a glob stand for, and what is said of the others."""

from __future__ import annotations

import os

import pytest

from wals_spark.config import CorpusConfig
from wals_spark.corpus.listing import LeftOut
from wals_spark.corpus.source import list_sources
from wals_spark.errors import InputError


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def names(*paths, left_out=None, **keys):
    config = CorpusConfig(path=tuple(map(str, paths)), **keys)
    return [file.name for file in list_sources(config, left_out)]


def test_what_a_directory_holds_and_is_not_read_is_counted_with_its_reason(tmp_path):
    touch(tmp_path, "a.txt", "README", "b.md", "c.doc", "_SUCCESS", ".a.txt.crc")
    os.symlink(tmp_path / "absent", tmp_path / "dangling.txt")
    left_out = LeftOut()
    assert names(tmp_path, left_out=left_out) == ["a.txt"]
    assert left_out.counts() == {"source_hidden": 2, "source_not_files": 1, "source_unknown_ending": 3}
    assert "3 of an ending that tells no format (README, b.md, c.doc)" in left_out.summary()


@pytest.mark.parametrize("name", ["a.md", "README", "a.bak", "a.tar"])
def test_a_named_file_that_cannot_be_read_is_an_error(tmp_path, name):
    touch(tmp_path, name, "b.txt")
    with pytest.raises(InputError, match=rf"the ending of .*{name} tells no format; set corpus\.format"):
        names(tmp_path / name, tmp_path / "b.txt")
    assert names(tmp_path / name, format="text_files") == [name]


def test_a_glob_that_matches_directories_gives_what_is_in_them(tmp_path):
    touch(tmp_path, "day=1.parquet/part-0.parquet", "day=1.parquet/_SUCCESS", "day=2.parquet/part-0.parquet", "x/a.txt")
    days = ["day=1.parquet/part-0.parquet", "day=2.parquet/part-0.parquet"]
    assert names(tmp_path / "*.parquet") == days
    assert names(tmp_path / "*") == [*days, "x/a.txt"]


def test_partitions_with_an_underscore_are_read(tmp_path):
    touch(tmp_path, "_year=1/a.txt", "_temporary/b.txt", "_x/c.txt")
    assert names(tmp_path) == ["_year=1/a.txt"]


def test_a_glob_that_names_hidden_files_reads_them(tmp_path):
    touch(tmp_path, "_old/a.txt", "_old/.b.txt", "new/c.txt")
    assert names(tmp_path / "_*" / "*.txt") == ["_old/a.txt"]


def test_a_loop_of_links_is_walked_once(tmp_path):
    touch(tmp_path, "a/one.txt", "b/two.txt")
    os.symlink(tmp_path, tmp_path / "a" / "loop")
    os.symlink(tmp_path / "a", tmp_path / "b" / "again")
    left_out = LeftOut()
    assert names(tmp_path, left_out=left_out) == ["a/one.txt", "b/two.txt"]
    assert left_out.counts() == {"source_linked_directories": 2}


def test_a_directory_that_is_reached_by_a_link_only_is_read(tmp_path):
    touch(tmp_path, "elsewhere/one.txt", "corpus/two.txt")
    os.symlink(tmp_path / "elsewhere", tmp_path / "corpus" / "linked")
    assert names(tmp_path / "corpus") == ["linked/one.txt", "two.txt"]


def test_file_names_that_are_not_utf8_are_named(tmp_path):
    with open(os.fsencode(tmp_path) + b"/b\xff.txt", "wb") as stream:
        stream.write(b"x")
    with pytest.raises(InputError, match=r"the file name '.*b\\udcff\.txt' is not UTF-8"):
        names(tmp_path)


@pytest.mark.parametrize(
    "odd", ["a[b]c", "a{b,c}", "back\\slash", "with space", "per%20cent", "a*b", "q?", "#x", "grün"]
)
def test_any_characters_in_a_path(tmp_path, odd):
    touch(tmp_path, f"{odd}/{odd}.txt")
    assert names(tmp_path / odd) == [f"{odd}.txt"]
    assert names(tmp_path / odd / f"{odd}.txt") == [f"{odd}.txt"]


@pytest.mark.parametrize(
    ("pattern", "expected"), [("[[]a].txt", "[a].txt"), ("[!b]a].txt", "[a].txt"), ("x[&^].txt", "x^.txt")]
)
def test_sets_in_globs_may_hold_any_character(tmp_path, pattern, expected):
    touch(tmp_path, "[a].txt", "ba].txt", "x^.txt")
    assert names(tmp_path / pattern) == [expected]


@pytest.mark.parametrize(
    ("name", "kind"), [(".hoodie/hoodie.properties", "Hudi"), ("metadata/v1.metadata.json", "Iceberg")]
)
def test_tables_whose_files_are_not_their_rows_are_refused(tmp_path, name, kind):
    touch(tmp_path, "t/data/a.parquet", f"t/{name}")
    with pytest.raises(InputError, match=f"/t is a table of the format {kind}"):
        names(tmp_path)
