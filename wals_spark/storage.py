"""Files of the warehouse, wherever it is, without Spark: a thin layer over ``pyarrow.fs``.

Manifests, checkpoints and matrix blocks are read and written here, on the driver and in tasks.
Local paths, ``file:``, ``s3:``/``s3a:``, ``gs:``, ``abfs:`` and ``hdfs:`` URIs work as far as the
installed pyarrow knows them; credentials come from the environment, as pyarrow documents.
"""

from __future__ import annotations

import errno
import json
import os
import posixpath
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from wals_spark.errors import InputError, TransientError

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):")
_SPACE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CHANGED_MEANWHILE = (errno.ENOTEMPTY, errno.ENOENT)
REMOVE_WAIT_S = 10.0
_ACCESS_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def is_local(uri: str) -> bool:
    """Whether `uri` is a path of this machine's file system."""
    match = _SCHEME.match(uri)
    return match is None or match.group(1) == "file"


def local_path(uri: str) -> str:
    """The path of a local URI."""
    return re.sub(r"^file:(//)?", "", uri) if _SCHEME.match(uri) else uri


def join(base: str, *parts: str) -> str:
    """Join path segments below a path or URI."""
    return posixpath.join(base, *parts)


def absolute(uri: str) -> str:
    """`uri` with a local path made absolute; Spark tasks have another working directory."""
    return os.path.abspath(os.path.expanduser(local_path(uri))) if is_local(uri) else uri.rstrip("/")


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """The file system of `uri` and the path in it."""
    if is_local(uri):
        return pafs.LocalFileSystem(), absolute(uri)
    plain = re.sub(r"^s3[an]:", "s3:", uri)
    try:
        return pafs.FileSystem.from_uri(plain)
    except (pa.ArrowInvalid, OSError, ImportError) as error:
        raise InputError(
            f"no file system for {uri}: {error}; use a local path or an s3, gs, abfs or hdfs URI"
        ) from error


@contextmanager
def explained(action: str) -> Iterator[None]:
    """Turn operating-system errors into ours: no space is transient, no access is bad input."""
    try:
        yield
    except OSError as error:
        if error.errno in _SPACE_ERRORS:
            raise TransientError(f"{action}: no space left on the device; free some and run again") from error
        if error.errno in _ACCESS_ERRORS or "Read-only file system" in str(error):
            raise InputError(f"{action}: {error}; this command must be able to read and write there") from error
        raise


def exists(uri: str) -> bool:
    """Whether a file or directory is there."""
    fs, path = filesystem(uri)
    return bool(fs.get_file_info(path).type != pafs.FileType.NotFound)


def make_directory(uri: str) -> None:
    """Create a directory and its parents."""
    fs, path = filesystem(uri)
    with explained(f"cannot create the directory {uri}"):
        fs.create_dir(path, recursive=True)


def list_files(uri: str, *, recursive: bool = False) -> list[pafs.FileInfo]:
    """Files and directories below `uri`, sorted by path; empty where there is no such directory."""
    fs, path = filesystem(uri)
    selector = pafs.FileSelector(path, allow_not_found=True, recursive=recursive)
    return sorted(fs.get_file_info(selector), key=lambda info: info.path)


def read_bytes(uri: str) -> bytes:
    """The content of a file."""
    fs, path = filesystem(uri)
    with fs.open_input_stream(path) as stream:
        return bytes(stream.read())


def write_bytes(uri: str, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part.

    On local and HDFS paths a temporary file is renamed over the target; object stores publish an
    object only when it is closed.
    """
    fs, path = filesystem(uri)
    with explained(f"cannot write {uri}"):
        fs.create_dir(posixpath.dirname(path), recursive=True)
        if is_local(uri):
            temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
            try:
                with open(temporary, "wb") as stream:
                    stream.write(content)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.replace(temporary, path)
            except BaseException:
                if os.path.exists(temporary):
                    os.unlink(temporary)
                raise
        else:
            with fs.open_output_stream(path) as stream:
                stream.write(content)


def read_json(uri: str) -> Any:
    """Parse a JSON file; `InputError` when it is not JSON."""
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:
        raise InputError(f"{uri} is not JSON ({error}); it was cut short or edited: remove it and run again") from error


def write_json(uri: str, value: Any) -> None:
    """Write JSON atomically, see `write_bytes`."""
    write_bytes(uri, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def remove(uri: str) -> None:
    """Remove a file or a directory with its content; nothing happens where there is none.

    Tasks that outlive their killed driver may go on writing for some seconds: a directory that fills again, or loses
    files to somebody else, while it is removed is tried again for `REMOVE_WAIT_S`.
    """
    fs, path = filesystem(uri)
    deadline = time.monotonic() + REMOVE_WAIT_S
    with explained(f"cannot remove {uri}"):
        while True:
            kind = fs.get_file_info(path).type
            try:
                if kind == pafs.FileType.Directory:
                    fs.delete_dir(path)
                elif kind == pafs.FileType.File:
                    fs.delete_file(path)
                return
            except OSError as error:
                if error.errno not in _CHANGED_MEANWHILE or time.monotonic() > deadline:
                    raise
            time.sleep(0.05)


def move(source: str, target: str) -> None:
    """Rename a file or a directory; `target` must not exist."""
    fs, source_path = filesystem(source)
    _, target_path = filesystem(target)
    with explained(f"cannot move {source} to {target}"):
        fs.create_dir(posixpath.dirname(target_path), recursive=True)
        fs.move(source_path, target_path)


@contextmanager
def locked(uri: str) -> Iterator[None]:
    """Hold a short lock among the processes of this machine (and of others that share its file system).

    For steps of milliseconds: it waits. Elsewhere than on a local file system it does nothing; stages hold
    a lease on their output there (`wals_spark.runs.RunLock`).
    """
    if not is_local(uri):
        yield
        return
    import fcntl

    path = local_path(uri)
    with explained(f"cannot lock {uri}"):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def age_hours(uri: str) -> float:
    """Hours since a file or directory was changed; 0 where the store does not say."""
    fs, path = filesystem(uri)
    changed = fs.get_file_info(path).mtime_ns
    return max(0.0, time.time() - changed / 1e9) / 3600 if changed else 0.0
