"""Bytes of an input split -> batches of documents. Plain Python, run in Spark tasks.

Spark's text readers replace what is not UTF-8 without a word and keep a gzip file's first half, so files
are read here. Nothing is decoded yet: see `clean`.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wals_spark import storage
from wals_spark.config import CorpusConfig
from wals_spark.corpus.document_batch import DocumentBatch
from wals_spark.corpus.source import InputSplit, SourceFile, corrupt_file_error, require_columns
from wals_spark.errors import InputError

BLOCK_BYTES = 8 << 20
UTF8_BOM = b"\xef\xbb\xbf"
_NEWLINE, _RETURN = 0x0A, 0x0D
_DECODE_ERRORS = (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, EOFError)


def read_splits(splits: list[InputSplit], config: CorpusConfig, counts: Counter[str]) -> Iterator[DocumentBatch]:
    """The documents of splits, in order, in batches of about `BLOCK_BYTES`.

    Parameters
    ----------
    counts : Counter
        Gets ``corrupt_files``, ``corrupt_records`` and ``bytes_read``.

    Raises
    ------
    InputError
        A file that cannot be decoded, a missing column, a document without an id.
    """
    whole: list[InputSplit] = []
    for split in splits:
        if split.file.format == "text_files":
            whole.append(split)
            continue
        yield from _whole_files(whole, config, counts)
        whole = []
        yield from READERS[split.file.format](split, config, counts)
    yield from _whole_files(whole, config, counts)


def _whole_files(splits: list[InputSplit], config: CorpusConfig, counts: Counter[str]) -> Iterator[DocumentBatch]:
    ids: list[str] = []
    texts: list[bytes] = []
    held = 0
    for split in splits:
        if not _intact(split.file, config, counts):
            continue
        text = b"".join(_blocks(split, counts)).removeprefix(UTF8_BOM)
        ids.append(split.file.name)
        texts.append(text)
        held += len(text)
        if held >= BLOCK_BYTES:
            yield DocumentBatch.from_texts(ids, texts, split.file.path)
            ids, texts, held = [], [], 0
    if ids:
        yield DocumentBatch.from_texts(ids, texts, splits[-1].file.path)


def _intact(file: SourceFile, config: CorpusConfig, counts: Counter[str]) -> bool:
    """Whether a compressed file can be read to its end; only asked for where it would be skipped."""
    if file.compression is None or config.corrupt_files == "refuse":
        return True
    try:
        for _ in _blocks(InputSplit(file), Counter()):
            pass
    except InputError:
        counts["corrupt_files"] += 1
        return False
    return True


def _blocks(split: InputSplit, counts: Counter[str]) -> Iterator[bytes]:
    """The bytes of a file from ``split.start``, decompressed, in blocks."""
    file = split.file
    fs, path = storage.filesystem(file.path)
    try:
        if file.compression is not None:
            stream = fs.open_input_stream(path, compression=file.compression)
        else:
            stream = fs.open_input_file(path)
            stream.seek(split.start)
        with stream:
            while block := stream.read(BLOCK_BYTES):
                counts["bytes_read"] += len(block)
                yield block
    except _DECODE_ERRORS as error:
        raise corrupt_file_error(file.path, error) from error


def _lines(split: InputSplit, counts: Counter[str]) -> Iterator[tuple[bytes, int]]:
    """Blocks of whole lines that start in the split, each with its position in the (decompressed) file."""
    # Beginning one byte early tells whether a line starts at split.start.
    begin = max(split.start - 1, 0)
    position = begin
    skip_first = split.start > 0
    held: list[bytes] = []
    for block in _blocks(InputSplit(split.file, begin), counts):
        stop = len(block)
        if split.stop is not None and position + len(block) >= split.stop:
            # The line that holds byte stop - 1 is the last one; it ends at the first line break from there on.
            found = block.find(b"\n", max(split.stop - 1 - position, 0))
            stop = found + 1 if found >= 0 else -1
        if stop == -1 or (cut := block.rfind(b"\n", 0, stop) + 1) == 0:
            held.append(block)
            position += len(block)
            continue
        lines = b"".join([*held, block[:cut]])
        first = position + cut - len(lines)
        if skip_first:
            after = lines.index(b"\n") + 1
            lines, first = lines[after:], first + after
            skip_first = False
        if lines:
            yield lines, first
        if split.stop is not None and position + cut >= split.stop:
            return
        held = [block[cut:]]
        position += len(block)
    rest = b"".join(held)
    if skip_first:
        rest = rest.partition(b"\n")[2]
    if rest:
        yield rest, position - len(rest)


def _line_blocks(split: InputSplit, config: CorpusConfig, counts: Counter[str]) -> Iterator[tuple[bytes, int]]:
    """As `_lines`, without the byte order mark of the file; nothing of a corrupt file that is skipped."""
    if not _intact(split.file, config, counts):
        return
    for lines, position in _lines(split, counts):
        if position == 0 and lines.startswith(UTF8_BOM):
            yield lines[len(UTF8_BOM) :], len(UTF8_BOM)
        else:
            yield lines, position


def _read_text(split: InputSplit, config: CorpusConfig, counts: Counter[str]) -> Iterator[DocumentBatch]:
    """A document per line; its id is the file's name and the position of its first byte."""
    for lines, position in _line_blocks(split, config, counts):
        data = np.frombuffer(lines if lines.endswith(b"\n") else lines + b"\n", np.uint8)
        ends = np.flatnonzero(data == _NEWLINE)
        starts = np.concatenate([[0], ends[:-1] + 1])
        ids = [f"{split.file.name}:{position + at}" for at in starts.tolist()]
        returns = (data[np.maximum(ends - 1, 0)] == _RETURN) & (ends > starts)
        kept = np.ones(len(data), bool)
        kept[ends] = kept[ends[returns] - 1] = False
        offsets = np.zeros(len(ids) + 1, np.int64)
        np.cumsum(ends - starts - returns, out=offsets[1:])
        yield DocumentBatch(ids, data[kept], offsets, split.file.path)


def _read_jsonl(split: InputSplit, config: CorpusConfig, counts: Counter[str]) -> Iterator[DocumentBatch]:
    """An object per line."""
    for lines, start in _line_blocks(split, config, counts):
        position = start
        ids: list[str] = []
        texts: list[bytes] = []
        for line in lines.split(b"\n"):
            record = _parse(line, split.file, position, config, counts) if line.strip() else None
            if record is not None:
                where = f"{split.file.path}, byte {position}"
                ids.append(_record_id(record, where, config) or f"{split.file.name}:{position}")
                texts.append(_record_text(record, where, config))
            position += len(line) + 1
        yield DocumentBatch.from_texts(ids, texts, split.file.path)


def _parse(
    line: bytes, file: SourceFile, position: int, config: CorpusConfig, counts: Counter[str]
) -> dict[str, Any] | None:
    try:
        record = json.loads(line.decode("utf-8", "surrogateescape"))
        if not isinstance(record, dict):
            raise ValueError(f"found a JSON {type(record).__name__}, expected an object")
    except ValueError as error:
        if config.corrupt_files == "skip":
            counts["corrupt_records"] += 1
            return None
        raise InputError(
            f"{file.path}, byte {position}: {error}; correct the line, or set corpus.corrupt_files=skip to leave out "
            "and count what is not JSON"
        ) from None
    return record


def _record_id(record: dict[str, Any], where: str, config: CorpusConfig) -> str | None:
    if config.id_column is None:
        return None
    value = record.get(config.id_column)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InputError(
            f"{where}: corpus.id_column {config.id_column!r} is {json.dumps(value)[:60]}, expected text or an integer; "
            f"the keys are {', '.join(record)}"
        )
    text = str(value)
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError(f"{where}: the id {text!a} is not valid Unicode")
    return text


def _record_text(record: dict[str, Any], where: str, config: CorpusConfig) -> bytes:
    if config.text_column not in record:
        raise InputError(
            f"{where}: there is no {config.text_column!r} (corpus.text_column); the keys are {', '.join(record)}"
        )
    value = record[config.text_column]
    if value is None:
        return b""
    if not isinstance(value, str):
        raise InputError(
            f"{where}: corpus.text_column {config.text_column!r} holds a {type(value).__name__}, expected text"
        )
    try:
        return value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # an escaped half of a surrogate pair: not UTF-8, and not a byte of the file either
        return value.encode("utf-8", "surrogatepass")


def _read_parquet(split: InputSplit, config: CorpusConfig, counts: Counter[str]) -> Iterator[DocumentBatch]:
    """A document per row; without an id column its id is the file's name and the number of the row."""
    file = split.file
    fs, path = storage.filesystem(file.path)
    columns = [config.text_column, *([config.id_column] if config.id_column else [])]
    try:
        source = pq.ParquetFile(path, filesystem=fs, page_checksum_verification=True)
    except _DECODE_ERRORS as error:
        if config.corrupt_files == "skip":
            counts["corrupt_files"] += 1 if split.start == 0 else 0
            return
        raise corrupt_file_error(file.path, error) from error
    with source:
        require_columns(source.schema_arrow, file.path, config)
        footer = source.metadata
        row = sum(footer.row_group(index).num_rows for index in range(split.start))
        for group in range(split.start, footer.num_row_groups if split.stop is None else split.stop):
            try:
                # A group is decoded whole before its first row counts: a corrupt one leaves nothing behind.
                table = source.read_row_group(group, columns=columns)
            except _DECODE_ERRORS as error:
                if config.corrupt_files == "skip":
                    counts["corrupt_row_groups"] += 1
                    row += footer.row_group(group).num_rows
                    continue
                raise corrupt_file_error(f"{file.path}, row group {group},", error) from error
            counts["bytes_read"] += table.nbytes
            for part in table.to_batches():
                ids = _column_ids(part, file, row, config)
                yield DocumentBatch.from_arrow(ids, part.column(config.text_column), file.path)
                row += len(part)


def _column_ids(part: pa.RecordBatch, file: SourceFile, row: int, config: CorpusConfig) -> list[str]:
    if config.id_column is None:
        return [f"{file.name}:{number}" for number in range(row, row + len(part))]
    column = part.column(config.id_column)
    if column.null_count:
        raise InputError(
            f"{file.path}: {column.null_count} of {len(part)} rows near row {row} have no id "
            f"(corpus.id_column {config.id_column!r}); give every document one, or set corpus.id_column to none"
        )
    return [str(value, "utf-8") if isinstance(value, bytes) else str(value) for value in column.to_pylist()]


def _read_csv(split: InputSplit, config: CorpusConfig, counts: Counter[str]) -> Iterator[DocumentBatch]:
    """A document per record under a header; ``.tsv`` has tabs. Quoted fields may hold line breaks."""
    file = split.file
    if not _intact(file, config, counts):
        return
    ids: list[str] = []
    texts: list[bytes] = []
    held = 0
    csv.field_size_limit(2**31 - 1)
    with _text_stream(file) as stream:
        records = csv.reader(stream, delimiter="\t" if ".tsv" in file.name.lower() else ",", strict=True)
        header = _next_record(records, file) or []
        if header and header[0].startswith("\ufeff"):
            header[0] = header[0][1:]
        require_columns(pa.schema([(name, pa.string()) for name in header]), file.path, config)
        text_at = header.index(config.text_column)
        id_at = header.index(config.id_column) if config.id_column is not None else None
        number = 0
        while (record := _next_record(records, file)) is not None:
            if not record:
                continue
            if len(record) != len(header):
                if config.corrupt_files == "refuse":
                    raise InputError(
                        f"{file.path}, line {records.line_num}: {len(record)} fields under a header of {len(header)}; "
                        "correct the record, or set corpus.corrupt_files=skip to leave it out and count it"
                    )
                counts["corrupt_records"] += 1
            else:
                ids.append(f"{file.name}:{number}" if id_at is None else record[id_at])
                texts.append(record[text_at].encode("utf-8", "surrogateescape"))
                held += len(texts[-1])
            number += 1
            if held >= BLOCK_BYTES:
                counts["bytes_read"] += held
                yield DocumentBatch.from_texts(ids, texts, file.path)
                ids, texts, held = [], [], 0
    counts["bytes_read"] += held
    yield DocumentBatch.from_texts(ids, texts, file.path)


def _text_stream(file: SourceFile) -> io.TextIOWrapper:
    fs, path = storage.filesystem(file.path)
    stream = fs.open_input_stream(path, compression=file.compression)
    return io.TextIOWrapper(stream, "utf-8", "surrogateescape", newline="")


def _next_record(records: Any, file: SourceFile) -> list[str] | None:
    try:
        record: list[str] | None = next(records, None)
    except (csv.Error, *_DECODE_ERRORS) as error:
        raise corrupt_file_error(f"{file.path}, line {records.line_num},", error) from error
    return record


def check_records(files: list[SourceFile], config: CorpusConfig) -> None:
    """Read the first record of the first JSON-lines and CSV file: what is wrong with all of them shows there."""
    for form in ("jsonl", "csv"):
        first = next((file for file in files if file.format == form), None)
        if first is not None:
            next(READERS[form](InputSplit(first, 0, 1 if first.compression is None else None), config, Counter()), None)


Reader = Callable[[InputSplit, CorpusConfig, "Counter[str]"], Iterator[DocumentBatch]]
READERS: dict[str, Reader] = {"text": _read_text, "jsonl": _read_jsonl, "csv": _read_csv, "parquet": _read_parquet}
