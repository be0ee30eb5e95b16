"""Which files make the corpus, and how they are cut into input splits. No file is decoded here."""

from __future__ import annotations

import itertools
import posixpath
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from wals_spark import storage
from wals_spark.config import CorpusConfig
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
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}
LINE_FORMATS = frozenset({"text", "jsonl"})
CHECKED_FILES = 64
COMPRESSION_RATIO = 3
_GLOB = re.compile(r"[*?\[]")


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
    compression : {"gzip", "zstd"} or None
    bytes : int
    mtime_ns : int or None
    """

    path: str
    name: str
    format: str
    compression: str | None
    bytes: int
    mtime_ns: int | None


@dataclass(frozen=True)
class InputSplit:
    """A file, or a part of one: bytes ``start <= b < stop`` of lines, or row groups of Parquet.

    A line belongs to the split in which it starts.
    """

    file: SourceFile
    start: int = 0
    stop: int | None = None
    bytes: int | None = None


def list_sources(config: CorpusConfig) -> list[SourceFile]:
    """The files of the corpus, in the order of their names.

    Raises
    ------
    InputError
        Nothing configured, a path that is not there, a glob without a match, an unknown file ending.
    """
    if not config.path:
        raise InputError("corpus.path is empty: give files, directories or globs, for example --set corpus.path=texts/")
    found: dict[str, pafs.FileInfo] = {}
    entries = [storage.absolute(entry) for entry in config.path]
    for entry in entries:
        for uri, info in _expand(entry, config):
            found.setdefault(uri, info)
    root = _common_directory([_static_part(entry) for entry in entries], found)
    files = [_source(uri, root, info, config.format) for uri, info in sorted(found.items())]
    known = [file for file in files if file is not None]
    if not known:
        names = ", ".join(posixpath.basename(uri) for uri in sorted(found)[:5])
        raise InputError(
            f"corpus.path: none of {len(found)} files has an ending that tells its format "
            f"(found {names}); set corpus.format to text, text_files, jsonl, parquet or csv"
        )
    return known


def _expand(entry: str, config: CorpusConfig) -> list[tuple[str, pafs.FileInfo]]:
    """The files that a path, directory, Delta table or glob stands for."""
    static = _static_part(entry)
    fs, path = storage.filesystem(static)
    prefix = static.removesuffix(path)
    info = fs.get_file_info(path)
    if info.type == pafs.FileType.NotFound:
        raise InputError(f"corpus.path: there is nothing at {entry}")
    if static == entry and info.is_file:
        return [(entry, info)]
    if config.format in ("auto", "delta") and storage.exists(delta_log.log_directory(entry)):
        return _delta_files(entry, config)
    if config.format == "delta":
        raise InputError(f"corpus.path: {entry} is no Delta table: it has no _delta_log")
    inner = fs.get_file_info(pafs.FileSelector(path, recursive=True))
    files = [(prefix + item.path, item) for item in inner if item.is_file and not _hidden(item.path, path)]
    if static != entry:
        pattern = _glob_pattern(entry)
        files = [item for item in files if pattern.fullmatch(item[0])]
        if not files:
            raise InputError(f"corpus.path: no file matches {entry}")
    if not files:
        raise InputError(f"corpus.path: the directory {entry} holds no files")
    return files


def _delta_files(entry: str, config: CorpusConfig) -> list[tuple[str, pafs.FileInfo]]:
    """The Parquet files of a version of a Delta table, without Spark."""
    files = delta_log.active_files(entry, config.delta_version)
    if not files:
        raise InputError(f"corpus.path: the Delta table {entry} has no rows")
    uris = [storage.join(entry, file.path) for file in files]
    infos = [fs.get_file_info(path) for fs, path in map(storage.filesystem, uris)]
    for uri, info in zip(uris, infos, strict=True):
        if info.type == pafs.FileType.NotFound:
            raise InputError(f"corpus.path: {uri} is in the log of its Delta table and not there any more (VACUUM?)")
    return list(zip(uris, infos, strict=True))


def _static_part(entry: str) -> str:
    """The path before the first segment with a wildcard."""
    if not _GLOB.search(entry) or storage.exists(entry):
        return entry
    parts = entry.split("/")
    first = next(index for index, part in enumerate(parts) if _GLOB.search(part))
    return "/".join(parts[:first]) or "/"


def _glob_pattern(entry: str) -> re.Pattern[str]:
    """``**`` crosses directories; ``*``, ``?`` and ``[abc]`` do not."""
    translated = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = []
    for token in re.findall(r"\*\*/|\*\*|\*|\?|\[[^/\]]+\]|.", entry, re.S):
        is_set = len(token) > 2 and token.startswith("[")
        parts.append(translated.get(token) or (token.replace("[!", "[^", 1) if is_set else re.escape(token)))
    return re.compile("".join(parts), re.S)


def _hidden(path: str, root: str) -> bool:
    return any(part.startswith((".", "_")) for part in posixpath.relpath(path, root).split("/"))


def _common_directory(statics: Sequence[str], found: dict[str, Any]) -> str:
    directories = [posixpath.dirname(static) if static in found else static for static in statics]
    if len({directory.split("/")[0] for directory in directories}) > 1:
        return ""
    return posixpath.commonpath(directories)


def _source(uri: str, root: str, info: pafs.FileInfo, wanted: str) -> SourceFile | None:
    name = uri.removeprefix(root).lstrip("/")
    stem, ending = posixpath.splitext(name.lower())
    compression = COMPRESSIONS.get(ending)
    if compression:
        ending = posixpath.splitext(stem)[1]
    form = FORMATS.get(ending) if wanted == "auto" else "parquet" if wanted == "delta" else wanted
    if form is None:
        return None
    if form == "parquet":
        compression = None
    return SourceFile(uri, name, form, compression, info.size or 0, info.mtime_ns)


def file_identities(files: Iterable[SourceFile]) -> list[list[Any]]:
    """What the corpus was made from: path, size and time of change of every file."""
    return [[file.path, file.format, file.bytes, file.mtime_ns] for file in files]


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
                require_columns(schema, file.path, config)


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


def require_columns(schema: pa.Schema, path: str, config: CorpusConfig) -> None:
    """`InputError` unless the text and id columns are there and hold text (or integers as ids)."""
    names = [("text_column", config.text_column)]
    if config.id_column is not None:
        names.append(("id_column", config.id_column))
    for key, name in names:
        if name not in schema.names:
            raise InputError(
                f"{path} has no column {name!r} (corpus.{key}); its columns are {', '.join(schema.names) or 'none'}"
            )
        kind = schema.field(name).type
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
            raise InputError(f"{path}: column {name!r} (corpus.{key}) holds {kind}, expected text")


def input_splits(files: Sequence[SourceFile], target_bytes: int) -> list[InputSplit]:
    """Cut large files where their format allows: lines at bytes, Parquet at row groups; others stay whole."""
    large = [file for file in files if file.format == "parquet" and estimated_text_bytes(file) > target_bytes]
    with ThreadPoolExecutor(8) as pool:
        footers = dict(zip(large, pool.map(_row_group_bytes, large), strict=True))
    splits: list[InputSplit] = []
    for file in files:
        if file in footers:
            splits += _cut_row_groups(file, footers[file], target_bytes)
        elif file.format in LINE_FORMATS and file.compression is None and file.bytes > target_bytes:
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
