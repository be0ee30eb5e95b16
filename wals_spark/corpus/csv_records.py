"""Delimited text -> batches of documents: RFC 4180, any delimiter and quote, and Spark's dialect with its escapes.

Python's ``csv`` reads the records, strictly: other readers go on after a broken quote and give other text.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from wals_spark.config import CorpusConfig
from wals_spark.corpus.byte_stream import BLOCK_BYTES, UTF8_BOM, intact, text_blocks
from wals_spark.corpus.document_batch import DocumentBatch
from wals_spark.corpus.record_ids import text_id
from wals_spark.corpus.source import InputSplit, SourceFile, corrupt_file_error, require_columns
from wals_spark.errors import InputError


def read_csv(split: InputSplit, config: CorpusConfig, counts: Counter[str]) -> Iterator[DocumentBatch]:
    """A document per record under a header. Quoted fields may hold line breaks; an empty file holds no document.

    Raises
    ------
    InputError
        A column that is not there or there twice, a record of another length, a quote that does not end.
    """
    file = split.file
    if not intact(file, config, counts) or not _parses(split, config, counts):
        return
    ids: list[str] = []
    texts: list[bytes] = []
    held = 0
    records = _records(split, config, counts)
    header = _next_record(records, file)
    if header is None:
        return
    text_at, id_at = _positions(header, file, config)
    number = 0
    while (record := _next_record(records, file)) is not None:
        if not record:
            continue
        try:
            name = _checked_id(record, header, id_at, f"{file.path}, line {records.line_num}", config)
        except InputError:
            if config.corrupt_files == "refuse":
                raise
            counts["corrupt_records"] += 1
        else:
            ids.append(f"{file.name}:{number}" if name is None else name)
            texts.append(record[text_at].encode("utf-8", "surrogateescape"))
            held += len(texts[-1])
        number += 1
        if held >= BLOCK_BYTES:
            yield DocumentBatch.from_texts(ids, texts, file.path)
            ids, texts, held = [], [], 0
    yield DocumentBatch.from_texts(ids, texts, file.path)


def _checked_id(
    record: list[str], header: list[str], id_at: int | None, where: str, config: CorpusConfig
) -> str | None:
    if len(record) != len(header):
        raise InputError(
            f"{where}: {len(record)} fields under a header of {len(header)}; "
            "correct the record, or set corpus.corrupt_files=skip to leave it out and count it"
        )
    return None if id_at is None else text_id(record[id_at], where, config)


def _positions(header: list[str], file: SourceFile, config: CorpusConfig) -> tuple[int, int | None]:
    for key, name in (("text_column", config.text_column), ("id_column", config.id_column)):
        if name is not None and header.count(name) > 1:
            raise InputError(
                f"{file.path} has {header.count(name)} columns {name!r} (corpus.{key}); rename all but one"
            )
    require_columns(pa.schema([(name, pa.string()) for name in header]), file, config)
    return header.index(config.text_column), None if config.id_column is None else header.index(config.id_column)


def _parses(split: InputSplit, config: CorpusConfig, counts: Counter[str]) -> bool:
    """Whether all quotes end; only asked for where the file would be skipped whole."""
    if config.corrupt_files == "refuse":
        return True
    records = _records(split, config, Counter())
    try:
        while _next_record(records, split.file) is not None:
            pass
    except InputError:
        counts["corrupt_files"] += 1
        return False
    return True


def _next_record(records: Any, file: SourceFile) -> list[str] | None:
    try:
        record: list[str] | None = next(records, None)
    except csv.Error as error:
        raise corrupt_file_error(f"{file.path}, line {records.line_num},", error) from error
    return record


def delimiter(file: SourceFile, config: CorpusConfig) -> str:
    """What stands between fields: as configured, else a tab in files of the ending ``.tsv``, else a comma."""
    if config.delimiter is not None:
        return config.delimiter
    return "\t" if re.search(r"\.tsv(\.\w+)?$", file.name.lower()) else ","


def _records(split: InputSplit, config: CorpusConfig, counts: Counter[str]) -> Any:
    csv.field_size_limit(2**31 - 1)
    between = delimiter(split.file, config)
    text = _text(text_blocks(split, counts))
    if config.quote is None:
        return csv.reader(_lines(text), delimiter=between, quoting=csv.QUOTE_NONE, strict=True)
    if config.escape is not None and config.escape != config.quote:
        text = doubled_quotes(text, between, config.quote, config.escape)
    return csv.reader(_lines(text), delimiter=between, quotechar=config.quote, strict=True)


def _text(blocks: Iterator[bytes]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    first = True
    for block in blocks:
        yield decoder.decode(block.removeprefix(UTF8_BOM) if first else block)
        first = False
    yield decoder.decode(b"", final=True)


def _lines(blocks: Iterator[str]) -> Iterator[str]:
    """Lines with their ends, of which there are three kinds; no other character ends a line."""
    rest = ""
    for block in blocks:
        text = rest + block
        at = 0
        for match in _LINE.finditer(text):
            at = match.end()
            if at == len(text) and text[-1] == "\r":  # a line feed may follow in the next block
                at = match.start()
                break
            yield match.group()
        rest = text[at:]
    if rest:
        yield rest


_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)")


def doubled_quotes(blocks: Iterator[str], between: str, quote: str, escape: str) -> Iterator[str]:
    """Text with escapes, as Spark writes it, with doubled quotes instead.

    In a quoted field an escape before a quote or another escape stands for that character; outside quotes it stands
    for itself, as does one before any other character.

    Parameters
    ----------
    blocks : iterator of str
    between : str
        The delimiter.
    quote, escape : str

    Yields
    ------
    str
    """
    opening = re.compile(f"(?<![^{re.escape(between)}\r\n]){re.escape(quote)}")
    inside = re.compile("|".join(re.escape(token) for token in (escape + quote, escape * 2, quote * 2, quote)))
    replaced = {escape + quote: quote * 2, escape * 2: escape}
    quoted = False
    rest, before = "", "\n"
    for block in blocks:
        text, rest, at = rest + block, "", 0
        if not text:
            continue
        parts: list[str] = []
        while at < len(text):
            if not quoted:
                found = opening.search(before + text, at + 1)
                stop = len(text) if found is None else found.end() - 1
                parts.append(text[at:stop])
                quoted, at = found is not None, stop
                continue
            found = inside.search(text, at)
            if found is None or (found.end() == len(text) and found.group() == quote):
                # An escape or a quote at the end may belong to what comes next.
                stop = len(text) - text.endswith((quote, escape))
                parts.append(text[at:stop])
                rest, at = text[stop:], len(text)
                continue
            parts += [text[at : found.start()], replaced.get(found.group(), found.group())]
            quoted, at = found.group() != quote, found.end()
        before = text[-1]
        yield "".join(parts)
    yield rest
