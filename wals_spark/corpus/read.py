"""Bytes of an input split -> batches of documents. Plain Python, run in Spark tasks.

Spark's text readers replace what is not UTF-8 without a word and keep a gzip file's first half, so files
are read here. Nothing is decoded yet: see `clean`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wals_spark import storage
from wals_spark.config import CorpusConfig
from wals_spark.corpus.byte_stream import UTF8_BOM, intact, text_blocks
from wals_spark.corpus.csv_records import read_csv
from wals_spark.corpus.document_batch import DocumentBatch
from wals_spark.corpus.record_ids import text_id
from wals_spark.corpus.source import (
    InputSplit,
    SourceFile,
    column_path,
    corrupt_file_error,
    is_cut_at_bytes,
    require_columns,
)
from wals_spark.errors import InputError

BLOCK_BYTES = 8 << 20
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
        if not intact(split.file, config, counts):
            continue
        text = b"".join(text_blocks(split, counts)).removeprefix(UTF8_BOM)
        ids.append(split.file.name)
        texts.append(text)
        held += len(text)
        if held >= BLOCK_BYTES:
            yield DocumentBatch.from_texts(ids, texts, split.file.path)
            ids, texts, held = [], [], 0
    if ids:
        yield DocumentBatch.from_texts(ids, texts, splits[-1].file.path)


def _lines(split: InputSplit, counts: Counter[str]) -> Iterator[tuple[bytes, int]]:
    """Blocks of whole lines that start in the split, each with its position in the (decompressed) file."""
    # Beginning one byte early tells whether a line starts at split.start.
    begin = max(split.start - 1, 0)
    position = begin
    skip_first = split.start > 0
    held: list[bytes] = []
    for block in text_blocks(InputSplit(split.file, begin), counts):
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
    if not intact(split.file, config, counts):
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
            if line.strip():
                where = f"{split.file.path}, byte {position}"
                try:
                    record = _parse(line, where)
                    name = _record_id(record, where, config) or f"{split.file.name}:{position}"
                    text = _record_text(record, where, config)
                except InputError:
                    if config.corrupt_files == "refuse":
                        raise
                    counts["corrupt_records"] += 1
                else:
                    ids.append(name)
                    texts.append(text)
            position += len(line) + 1
        yield DocumentBatch.from_texts(ids, texts, split.file.path)


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8", "surrogateescape"))
        if not isinstance(record, dict):
            raise ValueError(f"found a JSON {type(record).__name__}, expected an object")
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError(
            f"{where}: {reason}; correct the line, or set corpus.corrupt_files=skip to leave out and count it"
        ) from None
    return record


_MISSING = object()


def _value(record: Any, name: str) -> Any:
    """The value of a key, or of a key in a key by dots; `_MISSING` where there is none."""
    if not isinstance(record, dict):
        return _MISSING
    if name in record:
        return record[name]
    for cut, character in enumerate(name):
        if character == "." and name[:cut] in record:
            found = _value(record[name[:cut]], name[cut + 1 :])
            if found is not _MISSING:
                return found
    return _MISSING


def _record_id(record: dict[str, Any], where: str, config: CorpusConfig) -> str | None:
    if config.id_column is None:
        return None
    value = _value(record, config.id_column)
    if isinstance(value, bool) or not isinstance(value, str | int):
        found = "not there" if value is _MISSING else json.dumps(value)[:60]
        raise InputError(
            f"{where}: corpus.id_column {config.id_column!r} is {found}, expected text or an integer; "
            f"the keys are {', '.join(record)}"
        )
    return text_id(str(value), where, config)


def _record_text(record: dict[str, Any], where: str, config: CorpusConfig) -> bytes:
    value = _value(record, config.text_column)
    if value is _MISSING:
        raise InputError(
            f"{where}: there is no {config.text_column!r} (corpus.text_column); the keys are {', '.join(record)}"
        )
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
    try:
        source = pq.ParquetFile(path, filesystem=fs, page_checksum_verification=True)
    except _DECODE_ERRORS as error:
        if config.corrupt_files == "skip":
            counts["corrupt_files"] += 1 if split.start == 0 else 0
            return
        raise corrupt_file_error(file.path, error) from error
    with source:
        require_columns(source.schema_arrow, file, config)
        places = {
            name: column_path(source.schema_arrow, name, file) or ()
            for name in (config.text_column, config.id_column)
            if name is not None
        }
        columns = [".".join(place) for place in places.values()]
        deleted = _deleted_rows(file)
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
                rows = np.arange(row, row + len(part))
                row += len(part)
                texts = _column(part, places[config.text_column])
                ids = None if config.id_column is None else _column(part, places[config.id_column])
                if deleted is not None:
                    kept = ~deleted[rows]
                    rows, texts = rows[kept], texts.filter(pa.array(kept))
                    ids = None if ids is None else ids.filter(pa.array(kept))
                yield _row_batch(texts, ids, rows, file, config, counts)


def _deleted_rows(file: SourceFile) -> Any:
    """A bool per row of the file, and false for what a last byte has beyond; None where no row is deleted."""
    return None if file.deleted is None else np.unpackbits(np.frombuffer(file.deleted, np.uint8)).astype(bool)


def _column(part: pa.RecordBatch, place: Sequence[str]) -> pa.Array:
    """A column, or a field of a struct; null where the struct is."""
    found = part.column(place[0])
    for segment in place[1:]:
        found = pc.struct_field(found, segment)
    return found


def _row_batch(
    texts: pa.Array, ids: pa.Array | None, rows: Any, file: SourceFile, config: CorpusConfig, counts: Counter[str]
) -> DocumentBatch:
    if ids is None:
        return DocumentBatch.from_arrow([f"{file.name}:{number}" for number in rows.tolist()], texts, file.path)
    names: list[str] = []
    bad = np.zeros(len(rows), bool)
    for at, value in enumerate(_plain_ids(ids)):
        try:
            if value is None:
                raise InputError(
                    f"{file.path}: row {rows[at]} has no id (corpus.id_column {config.id_column!r}); give every "
                    "document one, set corpus.id_column to none, or corpus.corrupt_files=skip to leave it out"
                )
            names.append(text_id(value, f"{file.path}, row {rows[at]}", config))
        except InputError:
            if config.corrupt_files == "refuse":
                raise
            bad[at] = True
            counts["corrupt_records"] += 1
    return DocumentBatch.from_arrow(names, texts.filter(pa.array(~bad)) if bad.any() else texts, file.path)


def _plain_ids(ids: pa.Array) -> list[str | bytes | None]:
    """Values of an id column: bytes where it holds text, which need not be UTF-8."""
    if pa.types.is_dictionary(ids.type):
        ids = ids.dictionary_decode()
    if pa.types.is_integer(ids.type):
        return [None if value is None else str(value) for value in ids.to_pylist()]
    if pa.types.is_string_view(ids.type):
        ids = ids.cast(pa.large_string())
    return ids.cast(pa.large_binary()).to_pylist()


def check_records(files: list[SourceFile], config: CorpusConfig) -> None:
    """Read the first record of the first JSON-lines and CSV file: what is wrong with all of them shows there."""
    for form in ("jsonl", "csv"):
        first = next((file for file in files if file.format == form), None)
        if first is not None:
            stop = 1 if is_cut_at_bytes(first) else None
            next(READERS[form](InputSplit(first, 0, stop), config, Counter()), None)


Reader = Callable[[InputSplit, CorpusConfig, "Counter[str]"], Iterator[DocumentBatch]]
READERS: dict[str, Reader] = {"text": _read_text, "jsonl": _read_jsonl, "csv": read_csv, "parquet": _read_parquet}
