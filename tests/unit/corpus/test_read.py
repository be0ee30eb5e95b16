from __future__ import annotations

import gzip
import json
import random
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from wals_spark.config import CorpusConfig
from wals_spark.corpus import read
from wals_spark.corpus.read import read_splits
from wals_spark.corpus.source import InputSplit, input_splits, list_sources
from wals_spark.errors import InputError


def documents(path, units=None, counts=None, **keys):
    """(id, text) of all documents below `path`."""
    config = CorpusConfig(path=str(path), **keys)
    units = units or [InputSplit(file) for file in list_sources(config)]
    batches = read_splits(units, config, Counter() if counts is None else counts)
    return [(name, batch.text(index)) for batch in batches for index, name in enumerate(batch.ids)]


def test_lines_are_documents_named_by_their_position(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\r\n\nlast")
    assert documents(tmp_path, format="text") == [
        ("a.txt:0", b"one"),
        ("a.txt:4", b"two"),
        ("a.txt:9", b""),
        ("a.txt:10", b"last"),
    ]


def test_files_are_documents_named_by_their_path(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\ntwo\n")
    (tmp_path / "sub" / "b.txt").write_bytes(b"three")
    assert documents(tmp_path) == [("a.txt", b"one\ntwo\n"), ("sub/b.txt", b"three")]


@pytest.mark.parametrize("block", [1, 2, 7, 64, 1 << 20])
@pytest.mark.parametrize("ending", [b"\n", b""])
def test_any_cut_of_a_file_of_lines_gives_the_same_documents(tmp_path, monkeypatch, block, ending):
    rng = random.Random(block)
    lines = [b"x" * rng.choice([0, 1, 2, 5, 30]) for _ in range(40)]
    (tmp_path / "a.txt").write_bytes(b"\n".join(lines) + ending)
    whole = documents(tmp_path, format="text")
    monkeypatch.setattr(read, "BLOCK_BYTES", block)
    (file,) = list_sources(CorpusConfig(path=str(tmp_path), format="text"))
    for parts in (1, 2, 3, 10, 50):
        units = input_splits([file], max(file.bytes // parts, 1))
        assert documents(tmp_path, units, format="text") == whole


def test_compressed_lines(tmp_path):
    text = b"one\ntwo\n"
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text[:4]) + gzip.compress(text[4:]))
    (tmp_path / "b.txt.zst").write_bytes(zstandard.compress(text))
    assert [found for _, found in documents(tmp_path, format="text")] == [b"one", b"two"] * 2


def test_json_lines(tmp_path):
    rows = [{"n": 7, "body": "grün"}, {"n": 8, "body": None}, {"n": 9, "body": ""}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    found = documents(tmp_path, id_column="n", text_column="body")
    assert found == [("7", "grün".encode()), ("8", b""), ("9", b"")]


def test_json_lines_without_ids_are_named_by_position(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    assert documents(tmp_path) == [("a.jsonl:0", b"a"), ("a.jsonl:14", b"b")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', r"byte 16: Expecting.*corrupt_files=skip"),
        ("[1]", "found a JSON list, expected an object"),
        ('{"body": "a"}', r"there is no 'text' \(corpus\.text_column\); the keys are body"),
        ('{"text": 5}', "holds a int, expected text"),
    ],
)
def test_bad_json_lines_are_refused_with_their_place(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text('{"text": "goo"}\n' + line + "\n")
    with pytest.raises(InputError, match=message):
        documents(tmp_path)


def test_lines_that_are_not_json_can_be_skipped(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\nnonsense\n{"text": "b"}\n')
    counts: Counter[str] = Counter()
    found = documents(tmp_path, counts=counts, corrupt_files="skip")
    assert [text for _, text in found] == [b"a", b"b"]
    assert counts["corrupt_records"] == 1


@pytest.mark.parametrize("value", ["null", "true", "1.5", "[1]"])
def test_a_json_id_must_be_text_or_an_integer(tmp_path, value):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "a", "id": {value}}}\n')
    with pytest.raises(InputError, match=r"corpus\.id_column 'id' is"):
        documents(tmp_path, id_column="id")


@pytest.mark.parametrize("kind", ["string", "large_string", "binary", "string_view", "dictionary"])
def test_parquet_text_of_any_type(tmp_path, kind):
    texts = pa.array(["one", None, "zwei ü", ""])
    texts = texts.dictionary_encode() if kind == "dictionary" else texts.cast(getattr(pa, kind)())
    pq.write_table(pa.table({"id": [1, 2, 3, 4], "text": texts}), tmp_path / "a.parquet", row_group_size=3)
    assert documents(tmp_path, id_column="id") == [
        ("1", b"one"),
        ("2", b""),
        ("3", "zwei ü".encode()),
        ("4", b""),
    ]


def test_parquet_rows_are_named_by_number_whatever_the_cut(tmp_path):
    pq.write_table(pa.table({"text": list("abcdefg")}), tmp_path / "a.parquet", row_group_size=2)
    (file,) = list_sources(CorpusConfig(path=str(tmp_path)))
    units = [InputSplit(file, 0, 1), InputSplit(file, 1, 3), InputSplit(file, 3, 4)]
    assert documents(tmp_path, units) == documents(tmp_path)
    assert documents(tmp_path)[-1] == ("a.parquet:6", b"g")


def test_parquet_without_some_id_is_refused(tmp_path):
    pq.write_table(pa.table({"id": ["a", None], "text": ["x", "y"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: row 1 has no id"):
        documents(tmp_path, id_column="id")


def test_mixed_schemas_name_the_file_that_differs(tmp_path):
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet has no column 'text'"):
        documents(tmp_path)


def damaged_gzip(path):
    content = gzip.compress(b"".join(b"line %d\n" % n for n in range(20_000)))
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("form", ["text", "text_files"])
def test_a_gzip_file_cut_short_is_named(tmp_path, form):
    damaged_gzip(tmp_path / "bad.txt.gz")
    with pytest.raises(InputError, match=r"bad\.txt\.gz cannot be decoded"):
        documents(tmp_path, format=form)


@pytest.mark.parametrize("form", ["text", "text_files"])
def test_a_gzip_file_cut_short_can_be_skipped_whole(tmp_path, form):
    damaged_gzip(tmp_path / "bad.txt.gz")
    (tmp_path / "good.txt").write_bytes(b"fine")
    counts: Counter[str] = Counter()
    found = documents(tmp_path, counts=counts, format=form, corrupt_files="skip")
    assert [text for _, text in found] == [b"fine"]
    assert counts["corrupt_files"] == 1


def damaged_parquet(path):
    pq.write_table(
        pa.table({"text": [f"document {n} " * 50 for n in range(300)]}), path, row_group_size=100, compression="zstd"
    )
    footer = pq.read_metadata(path)
    column = footer.row_group(1).column(0)
    at = column.dictionary_page_offset or column.data_page_offset
    content = bytearray(path.read_bytes())
    content[at : at + 40] = b"\xff" * 40
    path.write_bytes(bytes(content))


def test_a_damaged_parquet_row_group_is_named(tmp_path):
    damaged_parquet(tmp_path / "bad.parquet")
    with pytest.raises(InputError, match=r"bad\.parquet, row group 1, cannot be decoded"):
        documents(tmp_path)


def test_a_damaged_parquet_row_group_can_be_skipped_and_ids_stay(tmp_path):
    damaged_parquet(tmp_path / "bad.parquet")
    counts: Counter[str] = Counter()
    found = documents(tmp_path, counts=counts, corrupt_files="skip")
    assert len(found) == 200
    assert found[100][0] == "bad.parquet:200"
    assert counts["corrupt_row_groups"] == 1


def test_csv_records(tmp_path):
    (tmp_path / "a.csv").write_bytes('\ufeffn,text\r\n1,"a, ""b""\nc"\r\n2,grün\r\n\r\n3,\r\n'.encode())
    assert documents(tmp_path, id_column="n") == [("1", b'a, "b"\nc'), ("2", "grün".encode()), ("3", b"")]


def test_tab_separated_and_compressed(tmp_path):
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(b"text\tother\none, two\tx\n"))
    assert documents(tmp_path) == [("a.tsv.gz:0", b"one, two")]


def test_csv_bytes_that_are_not_utf8_arrive_as_they_are(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"text\ngut \xff\n")
    assert documents(tmp_path) == [("a.csv:0", b"gut \xff")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"body\nx\n", r"has no column 'text' .*; its columns are body"),
        (b"text,b\nx\n", r"line 2: 1 fields under a header of 2"),
        (b'text\n"open\n', r"line 2, cannot be decoded \(unexpected end of data\)"),
    ],
)
def test_bad_csv_is_refused_with_its_place(tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        documents(tmp_path)


def test_an_empty_csv_file_holds_no_document(tmp_path):
    (tmp_path / "part-0.csv").write_bytes(b"")
    (tmp_path / "part-1.csv").write_bytes(b"text\none\n")
    assert documents(tmp_path) == [("part-1.csv:0", b"one")]


def test_csv_records_of_another_length_can_be_skipped(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"text,b\nx,1\ny\nz,2\n")
    counts: Counter[str] = Counter()
    assert documents(tmp_path, counts=counts, corrupt_files="skip") == [("a.csv:0", b"x"), ("a.csv:2", b"z")]
    assert counts["corrupt_records"] == 1


def test_the_first_record_shows_a_wrong_column(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": 1}\n')
    config = CorpusConfig(path=str(tmp_path))
    with pytest.raises(InputError, match="there is no 'text'"):
        read.check_records(list_sources(config), config)


def test_columns_of_json_and_parquet_may_be_fields_of_structs(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"meta": {"id": 7}, "body": {"raw": {"text": "one"}}}\n')
    table = pa.table({"meta": [{"id": 8}], "body": [{"raw": {"text": "two", "other": 1}}]})
    pq.write_table(table, tmp_path / "b.parquet")
    keys = {"id_column": "meta.id", "text_column": "body.raw.text"}
    assert documents(tmp_path, **keys) == [("7", b"one"), ("8", b"two")]


def test_a_name_with_dots_is_a_column_first(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a.b": "one", "a": {"b": "other"}}\n')
    pq.write_table(pa.table({"a": [{"b": "other"}], "a.b": ["two"], "c": [1]}), tmp_path / "b.parquet")
    assert [text for _, text in documents(tmp_path, text_column="a.b")] == [b"one", b"two"]


BAD_IDS = {
    "empty.jsonl": b'{"id": "", "text": "x"}\n',
    "null.jsonl": b'{"id": null, "text": "x"}\n',
    "absent.jsonl": b'{"text": "x"}\n',
    "bytes.jsonl": b'{"id": "\xff", "text": "x"}\n',
    "empty.csv": b"id,text\n,x\n",
    "bytes.csv": b"id,text\n\xff,x\n",
}


@pytest.mark.parametrize("name", BAD_IDS)
def test_bad_ids_are_refused_with_their_file_or_skipped(tmp_path, name):
    (tmp_path / name).write_bytes(BAD_IDS[name])
    with pytest.raises(InputError, match=f"{name}.*id"):
        documents(tmp_path, id_column="id")
    counts: Counter[str] = Counter()
    assert documents(tmp_path, id_column="id", corrupt_files="skip", counts=counts) == []
    assert counts["corrupt_records"] == 1


@pytest.mark.parametrize("bad", [None, "", b"\xff"])
def test_bad_ids_of_parquet_are_refused_with_their_row_or_skipped(tmp_path, bad):
    kind = pa.binary() if isinstance(bad, bytes) else pa.string()
    ids = [name if kind == pa.string() else name.encode() for name in "ac"]
    table = pa.table({"id": pa.array([ids[0], bad, ids[1]], kind), "text": list("xyz")})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet.*row 1"):
        documents(tmp_path, id_column="id")
    counts: Counter[str] = Counter()
    assert documents(tmp_path, id_column="id", corrupt_files="skip", counts=counts) == [("a", b"x"), ("c", b"z")]
    assert counts["corrupt_records"] == 1


@pytest.mark.parametrize("line", [b'{"text": 5}', b'{"other": "x"}', b"[" * 100_000, b"{"])
def test_json_lines_without_text_can_be_skipped(tmp_path, line):
    (tmp_path / "a.jsonl").write_bytes(line + b'\n{"text": "good"}\n')
    with pytest.raises(InputError, match=r"a\.jsonl, byte 0"):
        documents(tmp_path)
    counts: Counter[str] = Counter()
    found = documents(tmp_path, corrupt_files="skip", counts=counts)
    assert ([text for _, text in found], counts["corrupt_records"]) == ([b"good"], 1)
