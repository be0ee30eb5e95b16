"""The files below a directory, each directory once, with what is passed over and why."""

from __future__ import annotations

import os
import posixpath
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow.fs as pafs

from wals_spark import storage
from wals_spark.errors import InputError

GLOB = re.compile(r"[*?\[]")
REASONS = {
    "unknown_ending": "of an ending that tells no format",
    "hidden": "with names that start with . or _",
    "linked_directories": "directories that were read under another name",
    "not_files": "neither files nor directories, or links to nothing",
}
"""Why something that a directory or a glob holds is not read."""


@dataclass(frozen=True)
class FoundFile:
    """A file: its path or URI, bytes, and time of change in nanoseconds where the store says."""

    uri: str
    bytes: int
    mtime_ns: int | None


@dataclass
class LeftOut:
    """What was found and is not read: paths by reason, see `REASONS`."""

    paths: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, path: str) -> None:
        """Note a path."""
        self.paths.setdefault(reason, []).append(path)

    def counts(self) -> dict[str, int]:
        """Number of paths by reason, under the names of the metrics."""
        return {f"source_{reason}": len(paths) for reason, paths in sorted(self.paths.items())}

    def summary(self) -> str:
        """One line with counts, reasons and examples; empty where nothing was left out."""
        parts = [
            f"{len(paths):,} {REASONS[reason]} ({', '.join(posixpath.basename(path) for path in sorted(paths)[:3])}"
            f"{', ...' if len(paths) > 3 else ''})"
            for reason, paths in sorted(self.paths.items())
        ]
        return "not read: " + "; ".join(parts) if parts else ""


@dataclass(frozen=True)
class Listing:
    """Files below a directory, and the directories of table formats among them, whose files are not among `files`."""

    files: list[FoundFile]
    tables: list[str]


def static_part(entry: str) -> str:
    """The path before the first segment with a wildcard; all of a path that exists as it is."""
    if not GLOB.search(entry) or storage.exists(entry):
        return entry
    parts = entry.split("/")
    first = next(index for index, part in enumerate(parts) if GLOB.search(part))
    return "/".join(parts[:first]) or "/"


def glob_pattern(entry: str) -> re.Pattern[str]:
    """What a glob matches: ``**`` crosses directories; ``*``, ``?`` and ``[abc]`` do not.

    A directory that matches stands for all that is below it.
    """
    translated = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = []
    for token in re.findall(r"\*\*/|\*\*|\*|\?|\[[^/\]]+\]|.", entry, re.S):
        is_set = len(token) > 2 and token.startswith("[")
        if is_set:
            negated = token[1] in "!^"
            inner = token[2:-1] if negated else token[1:-1]
            escaped = re.sub(r"([\\^\[&~|])", r"\\\1", inner)
            parts.append(f"[{'^' if negated else ''}{escaped}]")
        else:
            parts.append(translated.get(token) or re.escape(token))
    return re.compile("".join(parts) + "(?:/.*)?", re.S)


def list_directory(directory: str, left_out: LeftOut, glob: str | None = None) -> Listing:
    """The files below a directory, or those of them that a glob matches.

    Parameters
    ----------
    directory : str
        Path or URI.
    left_out : LeftOut
        Gets what is hidden, no file, or reached a second time through links.
    glob : str or None
        None = all of the directory.

    Returns
    -------
    Listing
        Sorted by path.

    Raises
    ------
    InputError
        A file name that is not UTF-8; the files of an Iceberg or Hudi table.
    """
    pattern = glob_pattern(glob) if glob is not None else None
    explicit = {part[0] for part in glob[len(directory) :].split("/") if part[:1] in ("_", ".")} if glob else set()
    found = _walk_local(directory, left_out) if storage.is_local(directory) else _walk_remote(directory)
    tables = sorted({name for item in found if (name := _delta_table(item.uri, directory)) is not None})
    files: list[FoundFile] = []
    for item in sorted(found, key=lambda item: item.uri):
        if pattern is not None and not pattern.fullmatch(item.uri):
            continue
        if any(item.uri.startswith(f"{table}/") for table in tables):
            continue
        _refuse_table(item.uri)
        if _hidden(item.uri[len(directory) :], explicit):
            left_out.add("hidden", item.uri)
            continue
        try:
            item.uri.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"corpus.path: the file name {item.uri!a} is not UTF-8; rename the file (its name is part of ids)"
            ) from None
        files.append(item)
    if pattern is not None:
        tables = [table for table in tables if pattern.fullmatch(table)]
    return Listing(files, [table for table in tables if not _hidden(table[len(directory) :], explicit)])


def _walk_local(directory: str, left_out: LeftOut) -> list[FoundFile]:
    """All files; directories by device and inode, those that are no links first, so that no link hides a real one."""
    found: list[FoundFile] = []
    seen: set[tuple[int, int]] = set()
    waiting, linked = deque([storage.local_path(directory)]), deque[str]()
    while waiting or linked:
        path = waiting.popleft() if waiting else linked.popleft()
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in seen:
            left_out.add("linked_directories", path)
            continue
        seen.add((status.st_dev, status.st_ino))
        with storage.explained(f"corpus.path: cannot list {path}"), os.scandir(path) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.is_dir():
                    (linked if entry.is_symlink() else waiting).append(entry.path)
                elif entry.is_file():
                    status = entry.stat()
                    found.append(FoundFile(entry.path, status.st_size, status.st_mtime_ns))
                else:
                    left_out.add("not_files", entry.path)
    return found


def _walk_remote(directory: str) -> list[FoundFile]:
    fs, path = storage.filesystem(directory)
    prefix = directory.removesuffix(path)
    infos = fs.get_file_info(pafs.FileSelector(path, recursive=True))
    return [FoundFile(prefix + info.path, info.size or 0, info.mtime_ns) for info in infos if info.is_file]


def _delta_table(uri: str, directory: str) -> str | None:
    """The directory of the Delta table that a file is the log of."""
    table, log, _ = uri.partition("/_delta_log/")
    return table if log and len(table) >= len(directory) else None


def _refuse_table(uri: str) -> None:
    kind = "Hudi" if "/.hoodie/" in uri else "Iceberg" if re.search(r"/metadata/[^/]*\.metadata\.json$", uri) else None
    if kind is not None:
        table = uri.rpartition("/.hoodie/" if kind == "Hudi" else "/metadata/")[0]
        raise InputError(
            f"corpus.path: {table} is a table of the format {kind}, whose files are not its rows; "
            "expected files or a Delta table: write its rows to Parquet files or a Delta table first"
        )


def _hidden(name: str, explicit: set[str]) -> bool:
    """Whether Spark too would pass over the name: ``_x=1`` is a partition, not hidden."""
    parts: Sequence[str] = name.split("/")
    return any(
        part[:1] in (".", "_") and part[:1] not in explicit and not (part.startswith("_") and "=" in part)
        for part in parts
    )
