"""The content of a tokenizer.json: its model type, vocabulary and merges, in the spelling of old and new versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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


def token_ids(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Token -> id, added tokens included."""
    vocabulary = tokenizer["model"]["vocab"]
    unigram = tokenizer_model_type(tokenizer) == "Unigram"
    ids = {entry[0]: index for index, entry in enumerate(vocabulary)} if unigram else dict(vocabulary)
    ids.update({added["content"]: added["id"] for added in tokenizer.get("added_tokens", ())})
    return ids
