"""Delimiters, quotes and escapes; what Spark writes; what is wrong with a file."""

from __future__ import annotations

import csv
import io
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wals_spark.config import CorpusConfig
from wals_spark.corpus import byte_stream
from wals_spark.corpus.csv_records import doubled_quotes
from wals_spark.corpus.read import read_splits
from wals_spark.corpus.source import InputSplit, list_sources
from wals_spark.errors import InputError


def texts(path, counts=None, **keys):
    config = CorpusConfig(path=str(path), **keys)
    counts = Counter() if counts is None else counts
    splits = [InputSplit(file) for file in list_sources(config)]
    return [batch.text(i).decode() for batch in read_splits(splits, config, counts) for i in range(len(batch))]


@pytest.mark.parametrize(
    ("name", "content", "keys", "expected"),
    [
        ("a.csv", "id;text\n1;one, two\n", {"delimiter": ";"}, ["one, two"]),
        ("a.csv", "id\ttext\n1\tone, two\n", {"delimiter": "\t"}, ["one, two"]),
        ("a.tsv", 'id\ttext\n1\t"a ""b"""\n', {}, ['a "b"']),
        ("my.tsv.notes.csv", "id,text\n1,a\tb\n", {}, ["a\tb"]),
        ("a.csv", 'id,text\n1,"a" b\n', {"quote": None}, ['"a" b']),
        ("a.csv", "id,text\n1,'a, ''b'' c'\n", {"quote": "'"}, ["a, 'b' c"]),
        ("a.csv", '\ufeff"text","id"\n"one","1"\n', {}, ["one"]),
        ("a.csv", "id,text\r1,one\r2,two\r", {}, ["one", "two"]),
        ("a.csv", "id,text\n1,a\x0bb\u2028c\x85d\n", {}, ["a\x0bb\u2028c\x85d"]),
        ("a.csv", "other,text,other\n1,one,2\n", {}, ["one"]),
    ],
)
def test_dialects(tmp_path, name, content, keys, expected):
    (tmp_path / name).write_text(content, newline="")
    assert texts(tmp_path, **keys) == expected


SPARK = {
    r"C:\new": r"C:\new",
    r'a"b': r'"a\"b"',
    r"a\"b": r'"a\\\"b"',
    "a,b\\": r'"a,b\\"',
    r"x,\\y": r'"x,\\\\y"',
    "l1\nl2": '"l1\nl2"',
    '"': r'"\""',
    '""': r'"\"\""',
    "\\": "\\",
    r"\,": r'"\\,"',
    "": '""',
    "tab\there": "tab\there",
}
"""What Spark 4.2 writes for a text."""


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1 << 20])
def test_what_spark_writes_is_read_back(tmp_path, monkeypatch, block):
    monkeypatch.setattr(byte_stream, "BLOCK_BYTES", block)
    body = "".join(f"{number},{written}\n" for number, written in enumerate(SPARK.values()))
    (tmp_path / "a.csv").write_text("id,text\n" + body, newline="")
    assert texts(tmp_path, escape="\\") == list(SPARK)


@given(st.lists(st.lists(st.text('ab,"\\\n\r\t ', max_size=6), min_size=2, max_size=2), min_size=1), st.integers(1, 5))
def test_any_text_written_with_escapes_is_read_back(rows, size):
    escaped = [[field.replace("\\", "\\\\").replace('"', '\\"') for field in row] for row in rows]
    text = "".join(",".join(f'"{field}"' for field in row) + "\n" for row in escaped)
    blocks = (text[at : at + size] for at in range(0, len(text), size))
    doubled = "".join(doubled_quotes(blocks, ",", '"', "\\"))
    assert list(csv.reader(io.StringIO(doubled, newline=""), strict=True)) == rows


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("text,text\na,b\n")
    with pytest.raises(InputError, match=r"a\.csv has 2 columns 'text' \(corpus\.text_column\)"):
        texts(tmp_path)


def test_escaped_quotes_are_not_read_by_another_rule(tmp_path):
    (tmp_path / "a.csv").write_text('text\n"a\\"b"\n')
    with pytest.raises(InputError, match=r"a\.csv, line 2, cannot be decoded"):
        texts(tmp_path)


def test_a_file_with_an_open_quote_can_be_skipped_whole(tmp_path):
    (tmp_path / "a.csv").write_text('text\nfine\n"open\nmore\n')
    (tmp_path / "b.csv").write_text("text\ngood\n")
    counts: Counter[str] = Counter()
    assert texts(tmp_path, counts, corrupt_files="skip") == ["good"]
    assert counts["corrupt_files"] == 1
