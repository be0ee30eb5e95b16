"""Directories that appear whole or not at all: written aside, then renamed into place."""

from __future__ import annotations

import ctypes
import errno
import json
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow.fs as pafs

from wals_spark import storage
from wals_spark.checkpoints.artifact import MANIFEST
from wals_spark.checkpoints.output_check import (
    INJECTION,
    UNFINISHED,
    OutputOption,
    check_output,
    foreign_entries,
    list_entries,
    read_file_list,
)
from wals_spark.checkpoints.raw_tensor import file_sha256
from wals_spark.errors import InputError

logger = logging.getLogger(__name__)

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextmanager
def staged_directory(
    output: str, *, replace: bool, inputs: Sequence[str] = (), option: OutputOption = INJECTION
) -> Iterator[Path]:
    """A directory to write into; moved to `output` when the block ends well, removed when it does not.

    Parameters
    ----------
    output : str
        Local path, or URI of a directory.
    replace : bool
        Replace an existing directory where `check_output` lets it go; without it one that exists is refused.
    inputs : sequence of str
        Directories that are read, which are never replaced.
    option : OutputOption
        Names for messages.

    Raises
    ------
    ConfigError, InputError
        See `wals_spark.checkpoints.output_check.check_output`, which runs before the block and again after it.

    Notes
    -----
    A directory that is replaced lies beside the new one, as ``<output>.old``, until the new one is complete. On Linux
    the two swap names in one system call; elsewhere the old one is renamed away first, and comes back when the second
    rename fails. Object stores have no rename: files are copied, ``injection.json`` last, so a directory without it is
    unfinished.
    """
    check_output(output, replace=replace, inputs=inputs, option=option)
    if not storage.is_local(output):
        with tempfile.TemporaryDirectory(prefix="wals-spark-") as name:
            yield Path(name)
            check_output(output, replace=replace, inputs=inputs, option=option)
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
            if os.path.lexists(target) and not replace:
                raise InputError(
                    f"{option.output}: {target} appeared while the result was being made; it was left alone"
                )
            check_output(output, replace=replace, inputs=inputs, option=option)
            _publish_directory(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _publish_directory(staging: Path, target: Path) -> None:
    """Rename `staging` to `target`; an existing directory is called ``<target>.old`` until that is done."""
    if not os.path.lexists(target):
        os.rename(staging, target)
        return
    aside = Path(_free_name(str(target)))
    os.rename(staging, aside)
    try:
        swapped = _swap_names(aside, target)
    except OSError:
        os.rename(aside, staging)
        raise
    if not swapped:
        os.rename(aside, staging)
        os.rename(target, aside)
        try:
            os.rename(staging, target)
        except OSError:
            os.rename(aside, target)
            raise
    entries = list_entries(str(aside))
    if foreign_entries(entries, read_file_list(str(aside), entries)[1] or {}):
        logger.warning("%s got files while it was replaced: it was kept as %s", target, aside)
        return
    shutil.rmtree(aside, ignore_errors=True)


def _free_name(output: str) -> str:
    """``<output>.old``, or with a number behind it where an interrupted run left one."""
    name, number = f"{output}.old", 1
    while os.path.lexists(name) if storage.is_local(output) else storage.exists(name):
        logger.warning("%s is there already: an interrupted run replaced it; remove it when it is not needed", name)
        number += 1
        name = f"{output}.old.{number}"
    return name


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
    """Copy the files of `staging` to an object store; what was there is copied aside first, and back on failure."""
    old = None
    if storage.exists(output):
        old = _free_name(storage.absolute(output))
        _copy_remote(output, old)
        storage.remove(output)
    try:
        _copy_files(staging, output)
    except BaseException:
        storage.remove(output)
        if old is not None:
            _copy_remote(old, output)
            storage.remove(old)
        raise
    if old is not None:
        storage.remove(old)


def _copy_files(staging: Path, output: str) -> None:
    """Copy files to an object store: a list of them first, the completion marker last."""
    names = sorted((path.name for path in staging.iterdir()), key=lambda name: name == MANIFEST)
    fs, base = storage.filesystem(output)
    fs.create_dir(base, recursive=True)
    listed = {"format": "wals_spark upload", "files": {name: file_sha256(staging / name) for name in names}}
    storage.write_bytes(storage.join(output, UNFINISHED), json.dumps(listed).encode())
    for name in names:
        pafs.copy_files(
            str(staging / name), f"{base}/{name}", source_filesystem=pafs.LocalFileSystem(), destination_filesystem=fs
        )
    storage.remove(storage.join(output, UNFINISHED))


def _copy_remote(source: str, target: str) -> None:
    """Copy a directory within an object store."""
    fs, path = storage.filesystem(source)
    to, base = storage.filesystem(target)
    to.create_dir(base, recursive=True)
    pafs.copy_files(path, base, source_filesystem=fs, destination_filesystem=to)
