"""Keys of the configuration, declared as metadata of the dataclass field that they set.

The section ``train`` of the configuration, the refusal of keys without effect and docs/objectives.md are made from
these declarations.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

_METADATA = "key"


@dataclass(frozen=True)
class Key:
    """A key of the section ``train``: a number or one of a few names; none stands for the preset's value.

    Attributes
    ----------
    description : str
        Its meaning, for the configuration reference.
    ge, gt, le : float, optional
        Bounds of a number: at least, above, at most.
    choices : tuple of str
        The names that are allowed; empty for a number.
    """

    description: str
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    choices: tuple[str, ...] = ()


def key(
    description: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    choices: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Metadata that make a key of a dataclass field: ``field(default=10.0, metadata=key("...", gt=0))``.

    Parameters
    ----------
    description : str
    ge, gt, le : float, optional
    choices : tuple of str
        See `Key`.

    Returns
    -------
    dict
    """
    return {_METADATA: Key(description, ge, gt, le, choices)}


def keys_of(cls: type) -> dict[str, Key]:
    """Name -> key, of the fields of a dataclass that have one."""
    return {field.name: field.metadata[_METADATA] for field in fields(cls) if _METADATA in field.metadata}
