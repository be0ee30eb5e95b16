"""Which directories a result may be written to, and which existing ones it may replace.

A directory that exists is replaced only on demand, and only where nothing of somebody else's goes with it: it is empty,
or it holds a manifest of wals_spark, the files that the manifest lists with the content that it records, and no others.
It is never the input checkpoint, the working directory or a directory that holds one of them, and no symbolic link.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from wals_spark import storage
from wals_spark.checkpoints.artifact import MANIFEST
from wals_spark.errors import ConfigError, InputError

MANIFESTS = (MANIFEST, "compression.json")
UNFINISHED = "unfinished.json"
"""Manifest of an upload to an object store while it lasts."""
_SHOWN = 8
_CHUNK = 8 << 20


@dataclass(frozen=True)
class OutputOption:
    """The names under which a command knows its output, for messages.

    Attributes
    ----------
    output : str
    overwrite : str or None
        What lets it replace a directory; None where nothing does.
    checkpoint : str
        The input.
    """

    output: str = "inject.output"
    overwrite: str | None = "--set inject.overwrite=true"
    checkpoint: str = "inject.checkpoint"


INJECTION = OutputOption()


def check_output(
    output: str,
    *,
    replace: bool,
    inputs: Sequence[str] = (),
    option: OutputOption = INJECTION,
    contents: bool = True,
) -> None:
    """Raise where `output` cannot be written without loss.

    Parameters
    ----------
    output : str
        Local path, or URI of a directory.
    replace : bool
        An existing directory may be replaced.
    inputs : sequence of str
        Directories that are read; names that are no local directory are passed over.
    option : OutputOption
        Names for messages.
    contents : bool
        Check what an existing directory holds.

    Raises
    ------
    ConfigError
        `output` is, or holds, an input or the working directory.
    InputError
        `output` is a file, a symbolic link or a mount point; exists and may not be replaced; or holds files that
        wals_spark did not write.
    """
    with storage.explained(f"{option.output}: cannot read {output}"):
        if storage.is_local(output):
            exists = _check_place(storage.absolute(output), output, inputs, option)
        else:
            exists = _check_remote_kind(output, option)
        if not exists:
            return
        if not replace:
            remedy = f", or replace it with {option.overwrite}" if option.overwrite else " or remove it"
            raise InputError(f"{option.output}: {output} exists; choose another{remedy}")
        if contents:
            _check_contents(output, option)


def _check_place(path: str, shown: str, inputs: Sequence[str], option: OutputOption) -> bool:
    """Check what kind of thing a local path is and what lies below it; returns whether there is one."""
    if not os.path.lexists(path):
        return False
    if os.path.islink(path):
        raise InputError(
            f"{option.output}: {shown} is a symbolic link to {os.readlink(path)}, expected a directory that does not "
            "exist yet; name the directory itself, or remove the link"
        )
    if not os.path.isdir(path):
        raise InputError(f"{option.output}: {shown} is a file, expected a directory that does not exist yet")
    for source in inputs:
        directory = os.path.expanduser(source)
        if os.path.isdir(directory):
            _check_input(path, shown, directory, option)
    if lies_in(os.getcwd(), path):
        raise ConfigError(
            f"{option.output}: {shown} is the working directory or holds it, which a result may not replace; choose "
            "another directory"
        )
    if os.path.ismount(path):
        raise InputError(
            f"{option.output}: {shown} is a mount point, which cannot be replaced; choose a directory below it"
        )
    return True


def _check_input(path: str, shown: str, directory: str, option: OutputOption) -> None:
    if os.path.samefile(path, directory):
        raise ConfigError(
            f"{option.output}: {shown} is the checkpoint itself ({option.checkpoint}), which a result may not replace; "
            "choose another directory"
        )
    linked = [entry.path for entry in os.scandir(directory) if entry.is_symlink()]
    held = next((each for each in (directory, *sorted(linked)) if lies_in(each, path)), None)
    if held is not None:
        raise ConfigError(
            f"{option.output}: {shown} holds {held} of the checkpoint ({option.checkpoint}), which a result may not "
            "replace; choose another directory"
        )


def lies_in(path: str, directory: str) -> bool:
    """Whether `path`, with links followed, is an existing directory or lies below it."""
    real = Path(os.path.realpath(path))
    return any(each.exists() and os.path.samefile(each, directory) for each in (real, *real.parents))


def _check_remote_kind(output: str, option: OutputOption) -> bool:
    fs, path = storage.filesystem(output)
    kind = fs.get_file_info(path).type
    if kind == pafs.FileType.File:
        raise InputError(f"{option.output}: {output} is a file, expected a directory that does not exist yet")
    return bool(kind != pafs.FileType.NotFound)


def _check_contents(output: str, option: OutputOption) -> None:
    """Raise `InputError` where a directory holds something that wals_spark did not write."""
    entries = list_entries(output)
    if not entries:
        return
    name, recorded = read_file_list(output, entries)
    if recorded is None:
        why = f"its {name} is not one that wals_spark wrote" if name else f"it has no {' or '.join(MANIFESTS)}"
        raise InputError(
            f"{option.output}: {output} is not an earlier result ({why}; it holds {_listed(sorted(entries))}). Only an "
            "empty directory or an earlier result is replaced: choose another directory"
        )
    foreign = foreign_entries(entries, recorded)
    changed = [] if name == UNFINISHED else _changed_files(output, entries, recorded)
    if foreign or changed:
        found = [f"{_listed(foreign)} not written by wals_spark"] if foreign else []
        found += [f"{_listed(changed)} changed since"] if changed else []
        raise InputError(
            f"{option.output}: {output} is an earlier result, but it also holds {'; '.join(found)}: they would be "
            "lost. Move them elsewhere, or choose another directory"
        )


def list_entries(output: str) -> dict[str, bool]:
    """The names in a directory, and whether each is a plain file."""
    if storage.is_local(output):
        with os.scandir(storage.absolute(output)) as entries:
            return {entry.name: entry.is_file(follow_symlinks=False) for entry in entries}
    return {info.base_name: info.type == pafs.FileType.File for info in storage.list_files(output)}


def read_file_list(output: str, entries: Mapping[str, bool]) -> tuple[str | None, dict[str, str] | None]:
    """The manifest's name, and the hashes of the files that it lists; None for what is missing or not ours."""
    for name in (*MANIFESTS, UNFINISHED):
        if not entries.get(name):
            continue
        try:
            manifest: Any = json.loads(storage.read_bytes(storage.join(output, name)))
        except (ValueError, RecursionError):
            return name, None
        listed = manifest.get("files") if isinstance(manifest, dict) else None
        if not isinstance(listed, dict) or not str(manifest.get("format")).startswith("wals_spark "):
            return name, None
        return name, {file: str(value) for file, value in listed.items()}
    return None, None


def foreign_entries(entries: Mapping[str, bool], recorded: Mapping[str, str]) -> list[str]:
    """Names in a directory that its manifest does not list, and what is no plain file."""
    known = {*recorded, *MANIFESTS, UNFINISHED}
    return sorted(name for name, plain in entries.items() if name not in known or not plain)


def _changed_files(output: str, entries: Mapping[str, bool], recorded: Mapping[str, str]) -> list[str]:
    files = sorted(name for name, plain in entries.items() if plain and name in recorded)
    return [name for name in files if _sha256(storage.join(output, name)) != recorded[name]]


def _sha256(uri: str) -> str:
    fs, path = storage.filesystem(uri)
    digest = hashlib.sha256()
    with fs.open_input_stream(path) as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
