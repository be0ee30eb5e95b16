"""Compressed and encoded text, and files that are something else than their names say."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections import Counter

import pytest
import zstandard

from wals_spark.config import CorpusConfig
from wals_spark.corpus.byte_stream import text_blocks
from wals_spark.corpus.clean import clean_batch
from wals_spark.corpus.read import read_splits
from wals_spark.corpus.source import InputSplit, input_splits, list_sources
from wals_spark.errors import ConfigError, InputError

TEXT = b"".join(b"line %d of some text\n" % number for number in range(50_000))


def zstd_long(content):
    """As ``zstd --long=30``; decoders that allow 128 MiB refuse it."""
    settings = zstandard.ZstdCompressionParameters(window_log=30, enable_ldm=True)
    frame = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    return frame.compress(content) + frame.flush()


COMPRESS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.compress,
    "zst (window of 1 GiB)": zstd_long,
}


def split_of(path, **keys):
    (file,) = list_sources(CorpusConfig(path=str(path), **keys))
    return InputSplit(file)


def documents(path, **keys):
    config = CorpusConfig(path=str(path), **keys)
    counts: Counter[str] = Counter()
    splits = [InputSplit(file) for file in list_sources(config)]
    batches = [clean_batch(batch, config, counts) for batch in read_splits(splits, config, counts)]
    return [batch.text(index).decode() for batch in batches for index in range(len(batch))], counts


@pytest.mark.parametrize("kind", COMPRESS)
def test_every_compression_is_read_whole_in_several_frames(tmp_path, kind):
    path = tmp_path / f"a.txt.{kind.split()[0]}"
    path.write_bytes(COMPRESS[kind](TEXT) + COMPRESS[kind](b"more\n"))
    assert b"".join(text_blocks(split_of(path), Counter())) == TEXT + b"more\n"


@pytest.mark.parametrize("kind", COMPRESS)
@pytest.mark.parametrize("damage", ["cut", "overwritten"])
def test_damaged_files_are_named_or_skipped_whole(tmp_path, kind, damage):
    content = bytearray(COMPRESS[kind](TEXT))
    if damage == "cut":
        del content[len(content) // 2 :]
    else:
        content[: len(content) // 2] = bytes(len(content) // 2)
    path = tmp_path / f"a.txt.{kind.split()[0]}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.txt\.\w+ cannot be decoded"):
        documents(path, format="text")
    found, counts = documents(path, format="text", corrupt_files="skip")
    assert (found, counts["corrupt_files"]) == ([], 1)


KINDS = {
    "gzip": (gzip.compress(TEXT), "is compressed by gzip"),
    "zstd": (zstandard.compress(TEXT), "is compressed by zstd"),
    "bzip2": (bz2.compress(TEXT), "is compressed by bzip2"),
    "xz": (lzma.compress(TEXT), "is compressed by xz"),
    "zip": (b"PK\x03\x04" + bytes(100), "is a ZIP archive"),
    "pdf": (b"%PDF-1.4 ...", "is a PDF document"),
    "utf-16": ("some text".encode("utf-16"), r"looks like UTF-16; set corpus\.encoding=utf-16"),
    "utf-16-le": ("some text".encode("utf-16-le"), r"set corpus\.encoding=utf-16-le"),
    "utf-16-be": ("some text".encode("utf-16-be"), r"set corpus\.encoding=utf-16-be"),
}


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_another_kind_than_its_name_says_is_named_so(tmp_path, kind, name):
    content, message = KINDS[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name} .*{message}"):
        documents(tmp_path)
    found, counts = documents(tmp_path, corrupt_files="skip")
    assert (found, counts["corrupt_files"]) == ([], 1)


def test_a_later_part_of_a_file_of_another_kind_is_not_read_either(tmp_path):
    (tmp_path / "a.txt").write_bytes(gzip.compress(TEXT))
    config = CorpusConfig(path=str(tmp_path), format="text", corrupt_files="skip")
    splits = input_splits(list_sources(config), 1000)
    assert len(splits) > 2
    assert list(read_splits(splits, config, Counter())) == []


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-16-be", "utf-32", "gb18030", "utf-8-sig"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_text_in_other_encodings(tmp_path, encoding, name):
    text = "grün, café" if encoding != "gb18030" else "中文, é"
    content = {"a.txt": text, "a.jsonl": f'{{"text": "{text}"}}\n', "a.csv": f'text\n"{text}"\n'}[name]
    (tmp_path / name).write_bytes(content.encode(encoding))
    assert documents(tmp_path, encoding=encoding)[0] == [text]


def test_lines_of_another_encoding_are_not_cut_at_bytes(tmp_path):
    (tmp_path / "a.txt").write_bytes("einé\nzweí\n".encode("utf-16"))
    config = CorpusConfig(path=str(tmp_path), format="text", encoding="utf-16")
    splits = input_splits(list_sources(config), 4)
    assert [(split.start, split.stop) for split in splits] == [(0, None)]
    assert documents(tmp_path, format="text", encoding="utf-16")[0] == ["einé", "zweí"]


@pytest.mark.parametrize(
    ("encoding", "content"),
    [("cp1252", b"good\nbad \x81\n"), ("utf-16-le", "good\nbad ".encode("utf-16-le") + b"\x00\xd8")],
)
def test_what_is_no_text_in_the_encoding_is_refused_replaced_or_skipped(tmp_path, encoding, content):
    (tmp_path / "a.txt").write_bytes(content)
    keys = {"format": "text", "encoding": encoding}
    with pytest.raises(InputError, match="is not UTF-8"):
        documents(tmp_path, **keys)
    found, counts = documents(tmp_path, encoding_errors="skip", **keys)
    assert (found, counts["not_utf8_skipped"]) == (["good"], 1)
    assert documents(tmp_path, encoding_errors="replace", **keys)[0][1].startswith("bad \ufffd")


def test_half_a_character_at_the_end_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes("good".encode("utf-16-le") + b"a")
    with pytest.raises(InputError, match=r"a\.txt cannot be decoded .*truncated"):
        documents(tmp_path, encoding="utf-16-le")


@pytest.mark.parametrize("encoding", ["no-such-thing", "base64", "rot13"])
def test_what_is_no_text_encoding_is_refused(make_config, encoding):
    with pytest.raises(ConfigError, match="is no text encoding that Python knows"):
        make_config(corpus__encoding=encoding)
