"""Which files make the corpus, and how they are cut into input splits. No file is decoded here."""

from __future__ import annotations

import hashlib
import itertools
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from wals_spark import storage
from wals_spark.config import CorpusConfig
from wals_spark.corpus.listing import FoundFile, LeftOut, list_directory, static_part
from wals_spark.errors import InputError
from wals_spark.tables import delta_log

FORMATS = {
    ".txt": "text_files",
    ".text": "text_files",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bz2", ".xz": "xz"}
LINE_FORMATS = frozenset({"text", "jsonl"})
CHECKED_FILES = 64
COMPRESSION_RATIO = 3
_WAYS = "set corpus.format to text, text_files, jsonl, parquet or csv"


PackedBits = bytes


@dataclass(frozen=True)
class SourceFile:
    """A file of the corpus.

    Attributes
    ----------
    path : str
        Absolute path or URI.
    name : str
        Path below the directory that all configured paths share: what position-derived ids start with.
    format : {"text", "text_files", "jsonl", "parquet", "csv"}
    compression : {"gzip", "zstd", "bz2", "xz"} or None
    bytes : int
    mtime_ns : int or None
    physical : tuple of (str, tuple of str), or None
        Columns of a Delta table that have other names in its files: the path to each.
    deleted : bytes or None
        A bit per row of a Delta table's file, as `numpy.packbits` packs them: 1 where the row is deleted.
    encoding : str
        Python's name of the encoding of its text.
    """

    path: str
    name: str
    format: str
    compression: str | None
    bytes: int
    mtime_ns: int | None
    physical: tuple[tuple[str, tuple[str, ...]], ...] | None = None
    deleted: PackedBits | None = None
    encoding: str = "utf-8"


@dataclass(frozen=True)
class InputSplit:
    """A file, or a part of one: bytes ``start <= b < stop`` of lines, or row groups of Parquet.

    A line belongs to the split in which it starts.
    """

    file: SourceFile
    start: int = 0
    stop: int | None = None
    bytes: int | None = None


def list_sources(config: CorpusConfig, left_out: LeftOut | None = None) -> list[SourceFile]:
    """The files of the corpus, in the order of their names.

    Parameters
    ----------
    config : CorpusConfig
    left_out : LeftOut or None
        Gets what directories and globs hold and is not read.

    Returns
    -------
    list of SourceFile

    Raises
    ------
    InputError
        Nothing configured, a path that is not there, a glob without a match, a file named explicitly whose ending tells
        no format, a table that cannot be read.
    """
    if not config.path:
        raise InputError("corpus.path is empty: give files, directories or globs, for example --set corpus.path=texts/")
    left_out = LeftOut() if left_out is None else left_out
    found: dict[str, SourceFile | FoundFile] = {}
    entries = [storage.absolute(entry) for entry in config.path]
    named = set()
    for entry in entries:
        for item in _expand(entry, config, left_out):
            found.setdefault(item.path if isinstance(item, SourceFile) else item.uri, item)
            if isinstance(item, FoundFile) and item.uri == entry:
                named.add(entry)
    root = _common_directory([static_part(entry) for entry in entries], found)
    files = []
    for uri, item in sorted(found.items()):
        file = item if isinstance(item, SourceFile) else _source(item, config)
        if file is not None:
            files.append(replace(file, name=uri.removeprefix(root).lstrip("/")))
        elif uri in named:
            raise InputError(f"corpus.path: the ending of {uri} tells no format; {_WAYS}")
        else:
            left_out.add("unknown_ending", uri)
    if not files:
        names = ", ".join(posixpath.basename(uri) for uri in sorted(found)[:5])
        raise InputError(
            f"corpus.path: none of {len(found)} files has an ending that tells its format (found {names}); {_WAYS}"
        )
    return files


def _expand(entry: str, config: CorpusConfig, left_out: LeftOut) -> list[FoundFile | SourceFile]:
    """The files that a path, directory, Delta table or glob stands for."""
    static = static_part(entry)
    fs, path = storage.filesystem(static)
    info = fs.get_file_info(path)
    if info.type == pafs.FileType.NotFound:
        raise InputError(f"corpus.path: there is nothing at {entry}")
    if static == entry and info.is_file:
        return [FoundFile(entry, info.size or 0, info.mtime_ns)]
    glob = entry if static != entry else None
    listing = list_directory(static, left_out, glob)
    if listing.tables and config.format not in ("auto", "delta"):
        raise InputError(
            f"corpus.path: {listing.tables[0]} is a Delta table, whose files are not its rows; "
            f"set corpus.format to delta or auto (found {config.format})"
        )
    if config.format == "delta" and not listing.tables:
        raise InputError(f"corpus.path: {entry} is no Delta table: it has no _delta_log")
    if config.format == "delta" and listing.files:
        raise InputError(f"corpus.path: {listing.files[0].uri} belongs to no Delta table; set corpus.format to auto")
    files: list[FoundFile | SourceFile] = list(listing.files)
    for table in listing.tables:
        files += _delta_files(table, config)
    if not files:
        what = f"no file matches {entry}" if glob is not None else f"the directory {entry} holds no files"
        notes = left_out.summary()
        raise InputError(f"corpus.path: {what}{f' ({notes})' if notes else ''}")
    return files


def _delta_files(entry: str, config: CorpusConfig) -> list[SourceFile]:
    """The Parquet files of a version of a Delta table, without Spark."""
    files = delta_log.active_files(entry, config.delta_version)
    if not files:
        raise InputError(f"corpus.path: the Delta table {entry} has no rows")
    names = {
        column: tuple(delta_log.physical_path(entry, column, config.delta_version))
        for column in (config.text_column, config.id_column)
        if column is not None
    }
    physical = tuple((column, path) for column, path in names.items() if path != (column,)) or None
    found = []
    for file in files:
        fs, path = storage.filesystem(file.path)
        info = fs.get_file_info(path)
        if info.type == pafs.FileType.NotFound:
            raise InputError(
                f"corpus.path: {file.path} is in the log of its Delta table and not there any more (VACUUM?)"
            )
        deleted = None if file.deleted is None else np.packbits(file.deleted).tobytes()
        found.append(SourceFile(file.path, "", "parquet", None, info.size or 0, info.mtime_ns, physical, deleted))
    return found


def _common_directory(statics: Sequence[str], found: Mapping[str, Any]) -> str:
    directories = [posixpath.dirname(static) if static in found else static for static in statics]
    if len({directory.split("/")[0] for directory in directories}) > 1:
        return ""
    return posixpath.commonpath(directories)


def _source(file: FoundFile, config: CorpusConfig) -> SourceFile | None:
    """The file as what its ending, or the configuration, says that it is; None where neither does."""
    stem, ending = posixpath.splitext(file.uri.lower())
    compression = COMPRESSIONS.get(ending)
    if compression:
        ending = posixpath.splitext(stem)[1]
    form = FORMATS.get(ending) if config.format == "auto" else config.format
    if form is None:
        return None
    if form == "parquet":
        return SourceFile(file.uri, "", form, None, file.bytes, file.mtime_ns)
    return SourceFile(file.uri, "", form, compression, file.bytes, file.mtime_ns, encoding=config.codec)


def file_identities(files: Iterable[SourceFile]) -> list[list[Any]]:
    """What the corpus was made from: path, size and time of change of every file, and what its table says of it."""
    return [
        [file.path, file.format, file.bytes, file.mtime_ns]
        + ([hashlib.blake2b(file.deleted, digest_size=8).hexdigest()] if file.deleted is not None else [])
        + ([file.physical] if file.physical is not None else [])
        for file in files
    ]


def check_columns(files: Sequence[SourceFile], config: CorpusConfig) -> None:
    """Look into the first Parquet files for the columns that the configuration names.

    Raises
    ------
    InputError
        A column is missing (the message lists those there are) or holds something else than text.
    """
    chosen = [file for file in files if file.format == "parquet"][:CHECKED_FILES]
    with ThreadPoolExecutor(8) as pool:
        for file, schema in zip(chosen, pool.map(lambda file: _parquet_schema(file, config), chosen), strict=True):
            if schema is not None:
                require_columns(schema, file, config)


def _parquet_schema(file: SourceFile, config: CorpusConfig) -> pa.Schema | None:
    fs, path = storage.filesystem(file.path)
    try:
        return pq.read_schema(path, filesystem=fs)
    except (pa.ArrowInvalid, OSError) as error:
        if config.corrupt_files == "skip":
            return None
        raise corrupt_file_error(file.path, error) from error


def corrupt_file_error(path: str, error: BaseException) -> InputError:
    """The error for a file that cannot be decoded."""
    return InputError(
        f"{path} cannot be decoded ({str(error).splitlines()[0]}); repair or remove it, "
        "or set corpus.corrupt_files=skip to leave it out and count it"
    )


def column_path(schema: pa.Schema, name: str, file: SourceFile) -> tuple[str, ...] | None:
    """The path to a column in a Parquet file: its name, or that of a field of a struct by dots; None without one."""
    physical = dict(file.physical or ()).get(name)
    if physical is not None:
        return physical
    return _path(list(schema), name)


def _path(fields: Sequence[pa.Field], name: str) -> tuple[str, ...] | None:
    if any(field.name == name for field in fields):
        return (name,)
    for field in fields:
        if name.startswith(f"{field.name}.") and pa.types.is_struct(field.type):
            inner = _path(list(field.type), name[len(field.name) + 1 :])
            if inner is not None:
                return (field.name, *inner)
    return None


def _field_type(schema: pa.Schema, path: tuple[str, ...]) -> pa.DataType | None:
    kind: Any = None
    fields: Any = schema
    for segment in path:
        index = fields.get_field_index(segment)
        if index < 0:
            return None
        kind = fields.field(index).type
        fields = kind if pa.types.is_struct(kind) else pa.struct([])
    return kind


def require_columns(schema: pa.Schema, file: SourceFile, config: CorpusConfig) -> None:
    """`InputError` unless the text and id columns are there and hold text (or integers as ids)."""
    names = [("text_column", config.text_column)]
    if config.id_column is not None:
        names.append(("id_column", config.id_column))
    for key, name in names:
        path = column_path(schema, name, file)
        kind = None if path is None else _field_type(schema, path)
        if kind is None:
            raise InputError(
                f"{file.path} has no column {name!r} (corpus.{key}); "
                f"its columns are {', '.join(schema.names) or 'none'}"
            )
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        textual = any(
            test(kind)
            for test in (
                pa.types.is_string,
                pa.types.is_large_string,
                pa.types.is_string_view,
                pa.types.is_binary,
                pa.types.is_large_binary,
            )
        )
        if not textual and not (key == "id_column" and pa.types.is_integer(kind)):
            raise InputError(f"{file.path}: column {name!r} (corpus.{key}) holds {kind}, expected text")


def is_cut_at_bytes(file: SourceFile) -> bool:
    """Whether lines can be read from any byte on."""
    return file.format in LINE_FORMATS and file.compression is None and file.encoding == "utf-8"


def input_splits(files: Sequence[SourceFile], target_bytes: int) -> list[InputSplit]:
    """Cut large files where their format allows: lines at bytes, Parquet at row groups; others stay whole."""
    large = [file for file in files if file.format == "parquet" and estimated_text_bytes(file) > target_bytes]
    with ThreadPoolExecutor(8) as pool:
        footers = dict(zip(large, pool.map(_row_group_bytes, large), strict=True))
    splits: list[InputSplit] = []
    for file in files:
        if file in footers:
            splits += _cut_row_groups(file, footers[file], target_bytes)
        elif is_cut_at_bytes(file) and file.bytes > target_bytes:
            parts = -(-file.bytes // target_bytes)
            bounds = [file.bytes * part // parts for part in range(parts + 1)]
            splits += [InputSplit(file, start, stop) for start, stop in itertools.pairwise(bounds)]
        else:
            splits.append(InputSplit(file))
    return splits


def _row_group_bytes(file: SourceFile) -> list[int]:
    """Compressed sizes of the row groups; empty where the footer cannot be read (its task will say so)."""
    fs, path = storage.filesystem(file.path)
    try:
        with fs.open_input_file(path) as source:
            footer = pq.read_metadata(source)
    except (pa.ArrowInvalid, OSError):
        return []
    groups = (footer.row_group(index) for index in range(footer.num_row_groups))
    return [sum(group.column(c).total_compressed_size for c in range(group.num_columns)) for group in groups]


def _cut_row_groups(file: SourceFile, sizes: list[int], target_bytes: int) -> list[InputSplit]:
    splits: list[InputSplit] = []
    start = held = 0
    for index, size in enumerate(sizes):
        if held and (held + size / 2) * COMPRESSION_RATIO > target_bytes:
            splits.append(InputSplit(file, start, index, held))
            start, held = index, 0
        held += size
    return [*splits, InputSplit(file, start, len(sizes) or None, held)]


def estimated_text_bytes(file: SourceFile) -> int:
    """About how much text a file holds; for planning only."""
    return file.bytes * (COMPRESSION_RATIO if file.compression or file.format == "parquet" else 1)


def estimated_split_bytes(split: InputSplit) -> int:
    """About how much text a split holds; for planning only."""
    if split.file.format in LINE_FORMATS and split.stop is not None:
        return split.stop - split.start
    return split.bytes * COMPRESSION_RATIO if split.bytes is not None else estimated_text_bytes(split.file)


def group_splits(splits: Sequence[InputSplit], tasks: int) -> list[list[InputSplit]]:
    """Consecutive splits for at most `tasks` tasks of similar size, each at least one split."""
    total = sum(estimated_split_bytes(split) + 1 for split in splits)
    packed: list[list[InputSplit]] = []
    done = 0
    for split in splits:
        size = estimated_split_bytes(split) + 1
        if not packed or (done + size / 2) * tasks >= total * len(packed):
            packed.append([])
        packed[-1].append(split)
        done += size
    return packed
