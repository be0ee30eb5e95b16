"""Configuration and tokenizer files of a result against what they are made of: JSON key by key, others bytewise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from wals_spark.checkpoints.json_file import parse_json_object
from wals_spark.checkpoints.verification_report import VerificationReport, first_of
from wals_spark.errors import InputError

_OF_LIBRARIES = frozenset({"transformers_version"})
"""Keys of config.json that say which library wrote it."""
_SHOWN = 8


def check_base_files(
    report: VerificationReport, directory: Path, expected: Mapping[str, bytes], own: frozenset[str]
) -> None:
    """Check that a directory holds the expected files with the expected content, its own files, and no others.

    Parameters
    ----------
    report : VerificationReport
        The result is appended to it.
    directory : Path
    expected : dict of str to bytes
        Content by name: of the base, or what the mode makes of it.
    own : frozenset of str
        Names that are not compared.
    """
    present = {path.name for path in directory.iterdir()} - own
    problems = [f"{name} is missing" for name in sorted(expected.keys() - present)]
    problems += [f"{name} is not of the base" for name in sorted(present - expected.keys())]
    for name in sorted(present & expected.keys()):
        path = directory / name
        found = path.read_bytes() if path.is_file() else b""
        if found != expected[name] and (why := _difference(name, expected[name], found)):
            problems.append(why)
    report.add(
        "files of the base",
        not problems,
        f"{len(expected)} configuration and tokenizer files are the base's, or what the mode makes of them"
        if not problems
        else first_of(problems),
    )


def _difference(name: str, expected: bytes, found: bytes) -> str:
    """What differs between two contents of a file; empty where two JSON objects are equal."""
    if not name.endswith(".json"):
        return f"{name} differs"
    try:
        old, new = parse_json_object(expected, name), parse_json_object(found, name)
    except InputError as error:
        return f"{name}: {error!s:.100}"
    missing = object()
    differ = sorted(
        key for key in (old.keys() | new.keys()) - _OF_LIBRARIES if old.get(key, missing) != new.get(key, missing)
    )
    return f"{name}: {', '.join(differ[:_SHOWN])} differ" if differ else ""
