"""JSON files of a checkpoint, read so that whatever is wrong with them is said by file and key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wals_spark.errors import InputError

LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises
    ------
    InputError
        The file cannot be read, or holds something else; the message names it.
    """
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): expected a file with a JSON object") from error
    return parse_json_object(content, str(path))


def parse_json_object(content: bytes, what: str) -> dict[str, Any]:
    """The JSON object that some bytes are; `what` names them in messages.

    Raises
    ------
    InputError
        They are no JSON, another kind of value, or text that is not Unicode.
    """
    refuse_lfs_pointer(content, what)
    try:
        value = json.loads(content)
        json.dumps(value, ensure_ascii=False).encode()  # lone surrogates can be neither hashed nor printed
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{what} is not JSON ({error}): it was cut short or edited; copy or download it again"
        ) from None
    if not isinstance(value, dict):
        raise InputError(f"{what} holds a JSON {type(value).__name__}, expected an object with names and values")
    return value


def refuse_lfs_pointer(content: bytes, what: str) -> None:
    """Raise `InputError` where a file's first bytes are those of a Git LFS pointer."""
    if content.startswith(LFS_POINTER):
        raise InputError(
            f"{what} is a Git LFS pointer, not the file itself: run `git lfs pull` in the folder, or download it from "
            "the hub"
        )


def require_value(value: Mapping[str, Any], key: str, kinds: type | tuple[type, ...], what: str) -> Any:
    """The value of a dotted key, of one of some types.

    Parameters
    ----------
    value : dict of str to object
        Of a JSON object.
    key : str
        Names of nested objects, with dots between them.
    kinds : type or tuple of type
        A bool is no int.
    what : str
        The file, for messages.

    Returns
    -------
    object
        The value.

    Raises
    ------
    InputError
        The key is missing, or its value has another type; the message names file and key.
    """
    found: Any = value
    for name in key.split("."):
        if not isinstance(found, Mapping) or name not in found:
            raise InputError(f"{what} lacks {key}: it was edited; restore it or make it again")
        found = found[name]
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if not isinstance(found, kinds) or (isinstance(found, bool) and bool not in kinds):
        names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
        raise InputError(
            f"{what}: {key} is {_short(found)}, expected {names}; it was edited: restore it or make it again"
        )
    return found


def require_texts(value: Mapping[str, Any], key: str, what: str) -> dict[str, str]:
    """A mapping of strings to strings under a dotted key; `InputError` as in `require_value`."""
    found = require_value(value, key, dict, what)
    for name, text in found.items():
        if not isinstance(text, str):
            raise InputError(f"{what}: {key}, entry {name!r}, is {_short(text)}, expected str; it was edited")
    return dict(found)


def require_ids(value: Mapping[str, Any], key: str, what: str) -> list[int]:
    """A list of row ids under a dotted key; `InputError` as in `require_value`."""
    found = require_value(value, key, list, what)
    for item in found:
        if not isinstance(item, int) or isinstance(item, bool) or not 0 <= item < 1 << 63:
            raise InputError(f"{what}: {key} holds {_short(item)}, expected ids of rows; it was edited")
    return list(found)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
