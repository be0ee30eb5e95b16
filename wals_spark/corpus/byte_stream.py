"""Bytes of a source file, decompressed and as UTF-8, and what a file is that is not what its name says."""

from __future__ import annotations

import bz2
import codecs
import lzma
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import zstandard

from wals_spark import storage
from wals_spark.config import CorpusConfig
from wals_spark.corpus.source import InputSplit, SourceFile, corrupt_file_error
from wals_spark.errors import InputError

BLOCK_BYTES = 8 << 20
COMPRESSED_BYTES = 64 << 10
"""Compressed bytes that zstd gets at a time."""
ZSTD_WINDOW = 1 << 31
"""The largest window of a frame, that of ``zstd --long=31``; by default decoders refuse more than 128 MiB."""
UTF8_BOM = b"\xef\xbb\xbf"
DECODE_ERRORS = (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, EOFError, lzma.LZMAError, zstandard.ZstdError)
KINDS = {
    b"\x1f\x8b": "is compressed by gzip: name it .gz",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd: name it .zst",
    b"BZh91AY&SY": "is compressed by bzip2: name it .bz2",
    b"\xfd7zXZ\0": "is compressed by xz: name it .xz",
    b"PK\x03\x04": "is a ZIP archive: extract its files",
    b"PAR1\x15": "is Parquet: name it .parquet or set corpus.format=parquet",
    b"%PDF-1": "is a PDF document: extract its text first",
}
"""First bytes that no text has, and what to do about them."""
SAMPLE_BYTES = 4096


def text_blocks(split: InputSplit, counts: Counter[str]) -> Iterator[bytes]:
    """The text of a file from ``split.start``, decompressed and as UTF-8, in blocks.

    Bytes that are no text in the file's encoding come out as bytes that are not UTF-8: `clean.decode` deals with them.

    Parameters
    ----------
    split : InputSplit
    counts : Counter
        Gets ``bytes_read``, after decompression.

    Yields
    ------
    bytes

    Raises
    ------
    InputError
        The file cannot be decompressed, or is something else than text.
    """
    file = split.file
    try:
        if split.start:
            _refuse_other_kinds(file, next(_decompressed(file, 0, SAMPLE_BYTES), b""))
        decoder = None if file.encoding == "utf-8" else codecs.getincrementaldecoder(file.encoding)(_handler(file))
        first = split.start == 0
        for block in _decompressed(file, split.start, BLOCK_BYTES):
            if first:
                _refuse_other_kinds(file, block[:SAMPLE_BYTES])
                first = False
            counts["bytes_read"] += len(block)
            text = block if decoder is None else _as_utf8(decoder.decode(block))
            if text:
                yield text
        if decoder is not None and (text := _as_utf8(decoder.decode(b"", final=True))):
            yield text
    except (*DECODE_ERRORS, UnicodeError) as error:
        raise corrupt_file_error(file.path, error) from error


def intact(file: SourceFile, config: CorpusConfig, counts: Counter[str]) -> bool:
    """Whether a file can be read to its end; only asked for where it would be skipped.

    Parameters
    ----------
    counts : Counter
        Gets ``corrupt_files``.
    """
    if config.corrupt_files == "refuse":
        return True
    try:
        for _ in text_blocks(InputSplit(file), Counter()):
            if file.compression is None and file.encoding == "utf-8":
                break  # of such a file only the first bytes can be wrong here
    except InputError:
        counts["corrupt_files"] += 1
        return False
    return True


def _decompressed(file: SourceFile, start: int, size: int) -> Iterator[bytes]:
    fs, path = storage.filesystem(file.path)
    if file.compression is None:
        with fs.open_input_file(path) as source:
            source.seek(start)
            while block := source.read(size):
                yield block
        return
    by_arrow = "gzip" if file.compression == "gzip" else None
    with fs.open_input_stream(path, compression=by_arrow) as stream:
        if file.compression == "zstd":
            yield from _zstd(stream)
            return
        opened: Any = OPENERS[file.compression](stream) if file.compression in OPENERS else stream
        while block := opened.read(size):
            yield block


def _xz(stream: Any) -> lzma.LZMAFile:
    return lzma.LZMAFile(stream, format=lzma.FORMAT_XZ)  # the older format would take zeros for an empty file


OPENERS: dict[str, Callable[[Any], Any]] = {"bz2": bz2.BZ2File, "xz": _xz}
"""Decompressors of Python's own, where Arrow has none or stops after a first stream."""


def _zstd(stream: Any) -> Iterator[bytes]:
    """The content of all frames; `EOFError` where the last one is cut short."""
    frames = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW)
    frame = frames.decompressobj()
    begun = False
    held: list[bytes] = []
    size = 0
    while block := stream.read(COMPRESSED_BYTES):
        while block:
            text = frame.decompress(block)
            begun, block = True, b""
            held.append(text)
            size += len(text)
            if frame.eof:
                block, frame, begun = frame.unused_data, frames.decompressobj(), False
        if size >= BLOCK_BYTES:
            yield b"".join(held)
            held, size = [], 0
    if begun:
        raise EOFError("the last zstd frame is cut short")
    if size:
        yield b"".join(held)


def _handler(file: SourceFile) -> str:
    # Bytes become lone surrogates, which `_as_utf8` turns into bytes that are not UTF-8.
    return "surrogatepass" if file.encoding.startswith(("utf-16", "utf-32")) else "surrogateescape"


def _as_utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a surrogate pair
        return text.encode("utf-8", "surrogatepass")


def _refuse_other_kinds(file: SourceFile, sample: bytes) -> None:
    for magic, what in KINDS.items():
        if sample.startswith(magic):
            raise InputError(
                f"{file.path} is no text, it {what}; corpus.corrupt_files=skip leaves it out and counts it"
            )
    if file.encoding == "utf-8" and (form := _utf16(sample)) is not None:
        raise InputError(
            f"{file.path} looks like UTF-16; set corpus.encoding={form}, convert the file, or set "
            "corpus.corrupt_files=skip to leave it out and count it"
        )


def _utf16(sample: bytes) -> str | None:
    """The form of UTF-16 that bytes look like: by the byte order mark, or by zeros at every other byte."""
    if sample.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    pairs = len(sample) // 2
    zeros = [sample[start : 2 * pairs : 2].count(0) for start in (0, 1)]
    if pairs >= 4 and max(zeros) > 0.3 * pairs and min(zeros) < 0.05 * pairs:
        return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
    return None
