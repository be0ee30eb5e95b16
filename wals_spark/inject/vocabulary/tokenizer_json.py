"""The content of a tokenizer.json: its model type, vocabulary and merges, in the spelling of old and new versions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from wals_spark.errors import InputError


def tokenizer_model_type(tokenizer: Mapping[str, Any]) -> str:
    """BPE, WordPiece, Unigram or WordLevel.

    Files of older versions, roberta-base's among them, do not name it; it then follows from the model's keys, as in the
    tokenizers library.
    """
    model = tokenizer["model"]
    if model.get("type"):
        return str(model["type"])
    if "merges" in model:
        return "BPE"
    if isinstance(model.get("vocab"), list):
        return "Unigram"
    return "WordPiece" if "max_input_chars_per_word" in model else "WordLevel"


def bpe_merges(tokenizer: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The merges of a BPE tokenizer in their order; a list of pairs, or in older files of strings."""
    pairs = (
        tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in tokenizer["model"]["merges"]
    )
    return [(left, right) for left, right in pairs]


def subword_affixes(tokenizer: Mapping[str, Any]) -> tuple[str, str]:
    """The prefix of pieces that continue a word and the suffix of pieces that end one; empty where there is none."""
    model = tokenizer["model"]
    return model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""


def merged(left: str, right: str, prefix: str) -> str:
    """The token that a BPE merge makes: `right` loses the prefix of pieces that continue a word."""
    return left + right.removeprefix(prefix)


def token_ids(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Token -> id, added tokens included."""
    vocabulary = tokenizer["model"]["vocab"]
    unigram = tokenizer_model_type(tokenizer) == "Unigram"
    ids = {entry[0]: index for index, entry in enumerate(vocabulary)} if unigram else dict(vocabulary)
    ids.update({added["content"]: added["id"] for added in tokenizer.get("added_tokens", ())})
    return ids


def check_tokenizer_json(tokenizer: Mapping[str, Any], what: str) -> None:
    """Raise `InputError` where the tokenizers library does not load it, or gives a token another id than it says."""
    from tokenizers import Tokenizer

    try:
        found = Tokenizer.from_str(json.dumps(tokenizer)).get_vocab(with_added_tokens=True)
    except Exception as error:  # tokenizers raises a bare Exception
        raise InputError(f"{what}: the new tokenizer.json does not load ({error}); it was not written") from None
    expected = token_ids(tokenizer)
    wrong = sorted(token for token in found.keys() | expected.keys() if found.get(token) != expected.get(token))
    if wrong:
        raise InputError(
            f"{what}: the tokenizers library gives {wrong[0]!r} the id {found.get(wrong[0])}, expected "
            f"{expected.get(wrong[0])} (and {len(wrong) - 1} more): a tokenizer of this kind cannot be changed"
        )


def extension_problems(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What in a tokenizer.json is not an older one with tokens, pieces or merges appended; empty where it is.

    Both go through the tokenizers library first, so that spellings of one thing are equal.
    """
    before, after = (_in_today_spelling(content) for content in (old, new))
    problems = [
        f"{key} differs"
        for key in sorted((before.keys() | after.keys()) - {"model", "added_tokens", "version"})
        if before.get(key) != after.get(key)
    ]
    first, second = before["model"], after["model"]
    problems += [
        f"model.{key} differs"
        for key in sorted((first.keys() | second.keys()) - {"vocab", "merges"})
        if first.get(key) != second.get(key)
    ]
    if tokenizer_model_type(before) != tokenizer_model_type(after):
        return problems
    ids, found = token_ids(before), token_ids(after)
    problems += [f"token {token!r} has another id" for token, index in ids.items() if found.get(token) != index]
    last = max(ids.values(), default=-1)
    problems += [
        f"token {token!r} has an old id" for token, index in found.items() if token not in ids and index <= last
    ]
    if isinstance(first["vocab"], list) and second["vocab"][: len(first["vocab"])] != first["vocab"]:
        problems.append("scores of old pieces differ")
    merges = len(first.get("merges", ()))
    if second.get("merges", [])[:merges] != first.get("merges", []):
        problems.append("old merges differ")
    tokens = len(before.get("added_tokens", ()))
    if after.get("added_tokens", [])[:tokens] != before.get("added_tokens", []):
        problems.append("added_tokens differ")
    return problems


def _in_today_spelling(content: Mapping[str, Any]) -> dict[str, Any]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    written: dict[str, Any] = json.loads(tokenizer.to_str())
    return written
