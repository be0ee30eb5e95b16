"""Directories that appear whole or not at all: written aside, then renamed into place."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.fs as pafs

from wals_spark import storage
from wals_spark.errors import InputError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_COMPLETION_MARKER = "injection.json"


@contextmanager
def staged_directory(output: str, *, replace: bool) -> Iterator[Path]:
    """A directory to write into; moved to `output` when the block ends well, removed when it does not.

    Parameters
    ----------
    output : str
        Local path, or URI of a directory.
    replace : bool
        Replace an existing directory; without it one that exists is refused.

    Raises
    ------
    InputError
        `output` exists and `replace` is false, or it is a file.

    Notes
    -----
    On Linux a new local directory and an old one swap names in one system call; elsewhere the old one
    is renamed away first. Object stores have no rename: files are copied, ``injection.json`` last, so a
    directory without it is unfinished.
    """
    refuse_existing(output, replace=replace)
    if not storage.is_local(output):
        with tempfile.TemporaryDirectory(prefix="wals-spark-") as name:
            yield Path(name)
            _upload(Path(name), output)
        return
    target = Path(storage.absolute(output))
    with storage.explained(f"cannot write {target}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.staging"
        staging.mkdir()
    try:
        with storage.explained(f"cannot write {target}"):
            yield staging
            _publish_directory(staging, target, replace=replace)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def refuse_existing(output: str, *, replace: bool) -> None:
    """Raise `InputError` where `output` is a file, or exists and may not be replaced."""
    fs, path = storage.filesystem(output)
    kind = fs.get_file_info(path).type
    if kind == pafs.FileType.File:
        raise InputError(f"inject.output: {output} is a file, expected a directory that does not exist yet")
    if kind == pafs.FileType.Directory and not replace:
        raise InputError(
            f"inject.output: {output} exists; choose another, or replace it with --set inject.overwrite=true"
        )


def _publish_directory(staging: Path, target: Path, *, replace: bool) -> None:
    """Rename `staging` to `target`, swapping names with an existing directory."""
    if not target.exists():
        os.rename(staging, target)
        return
    if not replace:
        raise InputError(f"inject.output: {target} appeared while the model was being made; it was left alone")
    if not _swap_names(staging, target):
        aside = staging.with_suffix(".old")
        os.rename(target, aside)
        try:
            os.rename(staging, target)
        except OSError:
            os.rename(aside, target)
            raise
        shutil.rmtree(aside, ignore_errors=True)


def _swap_names(first: Path, second: Path) -> bool:
    """Swap two names atomically; False where the system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    if rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(second))


def _upload(staging: Path, output: str) -> None:
    """Copy the files of `staging` to an object store, the completion marker last."""
    storage.remove(output)
    names = sorted((path.name for path in staging.iterdir()), key=lambda name: name == _COMPLETION_MARKER)
    fs, base = storage.filesystem(output)
    fs.create_dir(base, recursive=True)
    for name in names:
        pafs.copy_files(
            str(staging / name), f"{base}/{name}", source_filesystem=pafs.LocalFileSystem(), destination_filesystem=fs
        )
