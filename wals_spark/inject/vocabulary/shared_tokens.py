r"""Tokens that two tokenizers share: special ones by their role, others by their string where strings mean the same.

A token string says where in a word its text stands, and tokenizers differ in how: byte-level BPE marks what follows a
space (``Ġthe``, ``the``), WordPiece what continues a word (``the``, ``##the``), SentencePiece what begins one
(``▁the``, ``the``). Strings are compared between tokenizers of one convention only; between two conventions nothing
but special tokens is shared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from wals_spark.inject.vocabulary.tokenizer_json import token_ids, tokenizer_model_type

ROLES: dict[str, tuple[str, ...]] = {
    "bos_token": ("<s>", "[CLS]"),
    "cls_token": ("<s>", "[CLS]"),
    "eos_token": ("</s>", "[SEP]"),
    "sep_token": ("</s>", "[SEP]"),
    "pad_token": ("<pad>", "[PAD]"),
    "unk_token": ("<unk>", "[UNK]"),
    "mask_token": ("<mask>", "[MASK]"),
}
"""Keys of tokenizer_config.json, and the strings that stand for them where it does not say."""


def token_convention(tokenizer: Mapping[str, Any]) -> str:
    """How the strings of a tokenizer.json mark the place of their text in a word.

    Returns
    -------
    str
        ``byte-level``, ``Metaspace ▁``, ``WordPiece ##`` or ``plain``, with the marks that the file has.
    """
    parts = [tokenizer.get(key) for key in ("pre_tokenizer", "decoder", "normalizer")]
    kinds = {kind: part for top in parts for kind, part in _components(top)}
    model = tokenizer["model"]
    if "ByteLevel" in kinds:
        return "byte-level"
    if "Metaspace" in kinds:
        return f"Metaspace {kinds['Metaspace'].get('replacement', '▁')}"
    if tokenizer_model_type(tokenizer) == "WordPiece":
        return f"WordPiece {model.get('continuing_subword_prefix', '##')}"
    marks = [str(model[key]) for key in ("continuing_subword_prefix", "end_of_word_suffix") if model.get(key)]
    return " ".join(["plain", *marks])


def _components(part: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """(type, content) of a part of a tokenizer.json and of what a Sequence of them holds."""
    if not isinstance(part, Mapping):
        return []
    found = [(str(part.get("type")), part)]
    for key in ("pretokenizers", "decoders", "normalizers"):
        for inner in part.get(key) or ():
            found += _components(inner)
    return found


def special_roles(tokenizer: Mapping[str, Any], described: Mapping[str, Any] | None = None) -> dict[str, int]:
    """Ids of special tokens by role.

    Parameters
    ----------
    tokenizer : dict of str to object
        The content of tokenizer.json.
    described : dict of str to object, optional
        The content of tokenizer_config.json, which may name the token of a role; else the first of `ROLES` that
        the tokenizer has stands for it.

    Returns
    -------
    dict of str to int
        Roles that the tokenizer has, in the order of `ROLES`.
    """
    ids, found = token_ids(tokenizer), {}
    for role, names in ROLES.items():
        named = (described or {}).get(role)
        if isinstance(named, Mapping):
            named = named.get("content")
        candidates = (named, *names) if isinstance(named, str) else names
        index = next((ids[name] for name in candidates if name in ids), None)
        if index is not None:
            found[role] = index
    return found


def shared_origin(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    old_roles: Mapping[str, int],
    new_roles: Mapping[str, int],
) -> np.ndarray:
    """The old id that each new token has in common with the old tokenizer.

    Parameters
    ----------
    old, new : dict of str to object
        The contents of the two tokenizer.json.
    old_roles, new_roles : dict of str to int
        From `special_roles`.

    Returns
    -------
    int64 array of shape (T',)
        -1 for a token that only the new tokenizer has, and for ids without a token.
    """
    before, after = token_ids(old), token_ids(new)
    origin = np.full(max(after.values(), default=-1) + 1, -1, np.int64)
    special = [{added["content"] for added in each.get("added_tokens", ())} for each in (old, new)]
    same = token_convention(old) == token_convention(new)
    for token, index in after.items():
        kinds = token in special[0], token in special[1]
        if token in before and (all(kinds) or (same and not any(kinds))):
            origin[index] = before[token]
    for role, index in new_roles.items():
        if role in old_roles:
            origin[index] = old_roles[role]
    return origin
