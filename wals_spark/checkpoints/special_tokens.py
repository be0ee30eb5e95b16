"""Special tokens that a checkpoint's files name beside tokenizer.json: by their text, and by their ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from wals_spark.checkpoints.json_file import read_json_object
from wals_spark.errors import InputError

NAMING_FILES = ("special_tokens_map.json", "tokenizer_config.json")
_LISTS = ("additional_special_tokens", "extra_special_tokens")


def named_special_tokens(directory: Path) -> dict[str, str]:
    """Special tokens of special_tokens_map.json and tokenizer_config.json: text -> the file and key that name it.

    Raises
    ------
    InputError
        A file that is no JSON object.
    """
    found: dict[str, str] = {}
    for name in NAMING_FILES:
        if (directory / name).is_file():
            for key, token in _tokens(read_json_object(directory / name)):
                found.setdefault(token, f"{name}: {key}")
    return found


def _tokens(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Keys and texts of the special tokens in one of the files."""
    for key, value in content.items():
        if key.endswith("_token"):
            yield from ((key, text) for text in _text(value))
        elif key in _LISTS:
            each = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
            yield from ((key, text) for entry in each for text in _text(entry))
        elif key == "added_tokens_decoder" and isinstance(value, Mapping):
            special = (entry for entry in value.values() if isinstance(entry, Mapping) and entry.get("special") is True)
            yield from ((key, text) for entry in special for text in _text(entry))


def _text(value: Any) -> tuple[str, ...]:
    """The text of a token given as itself or as an object with its content."""
    text = value.get("content") if isinstance(value, Mapping) else value
    return (text,) if isinstance(text, str) and text else ()


def config_token_ids(config: Mapping[str, Any], rows: int, what: str) -> dict[str, list[int]]:
    """Ids under the keys ``*_token_id`` and ``*_token_ids`` of a config.json or generation_config.json.

    Raises
    ------
    InputError
        An id that is no row of a model with `rows` rows; `what` names the file.
    """
    found = {}
    for key, value in config.items():
        if not key.endswith(("_token_id", "_token_ids")) or value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        for index in ids:
            if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < rows:
                raise InputError(
                    f"{what}: {key} is {index!r:.40}, the vocabulary has the ids 0 to {rows - 1}: correct or remove it"
                )
        found[key] = ids
    return found


def default_token_ids(config: Mapping[str, Any], rows: int) -> dict[str, int]:
    """Ids that the model's class takes for the keys ``*_token_id`` which config.json leaves out."""
    from transformers import CONFIG_MAPPING

    defaults = CONFIG_MAPPING[config["model_type"]]().to_dict()
    return {
        key: value
        for key, value in defaults.items()
        if key.endswith("_token_id") and key not in config and isinstance(value, int) and 0 <= value < rows
    }
