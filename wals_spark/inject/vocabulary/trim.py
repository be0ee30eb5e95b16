r"""Smaller vocabularies: keep the tokens that a corpus uses, and segment its text exactly as before.

Byte-level BPE needs the *merge closure* of the kept tokens: with a token, both parts of every merge that
makes it, and their parts. Proof that text whose tokens are all kept segments as before: every token that the full
tokenizer merges on the way to a kept one is in the closure, so every merge it applies is kept; kept
merges stay in order; so the first applicable merge is the same one at every step. WordPiece (longest match)
and Unigram (best path) need no closure: a removed token was never chosen.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from wals_spark.errors import InputError
from wals_spark.inject.vocabulary.tokenizer_json import bpe_merges, token_ids, tokenizer_model_type


def merge_closure(kept: Iterable[str], merges: Iterable[tuple[str, str]]) -> set[str]:
    """`kept` with both parts of every merge that makes one of them, recursively."""
    parts: dict[str, list[str]] = {}
    for left, right in merges:
        parts.setdefault(left + right, []).extend((left, right))
    closed: set[str] = set()
    waiting = list(kept)
    while waiting:
        token = waiting.pop()
        if token not in closed:
            closed.add(token)
            waiting += parts.get(token, ())
    return closed


def kept_ids(tokenizer: Mapping[str, Any], counts: np.ndarray, protected: Iterable[int], min_count: int) -> np.ndarray:
    """Old ids of the tokens that stay, ascending.

    Parameters
    ----------
    tokenizer : dict of str to object
        The content of tokenizer.json.
    counts : int64 array of shape (T,)
        Tokens of the corpus by id.
    protected : iterable of int
        Ids that stay whatever their count.
    min_count : int
        Rarer tokens go.

    Returns
    -------
    int64 array of shape (n,)

    Raises
    ------
    InputError
        A kind of tokenizer that is not BPE, WordPiece or Unigram.
    """
    kind = tokenizer_model_type(tokenizer)
    ids = {token: index for token, index in token_ids(tokenizer).items() if index < len(counts)}
    wanted = set(np.flatnonzero(counts >= min_count).tolist()) | set(protected)
    wanted |= {added["id"] for added in tokenizer.get("added_tokens", ())}
    if kind == "BPE":
        tokens = {index: token for token, index in ids.items()}
        alphabet = {token for token in ids if len(token) == 1}
        closed = merge_closure({tokens[index] for index in wanted if index in tokens} | alphabet, bpe_merges(tokenizer))
        wanted |= {ids[token] for token in closed if token in ids}
    elif kind in ("WordPiece", "Unigram"):
        prefix = tokenizer["model"].get("continuing_subword_prefix") or ""
        wanted |= {index for token, index in ids.items() if len(token.removeprefix(prefix)) == 1}
        unknown = tokenizer["model"].get("unk_token")
        wanted |= {ids[unknown]} if unknown in ids else set()
        wanted |= {tokenizer["model"]["unk_id"]} if tokenizer["model"].get("unk_id") is not None else set()
    else:
        raise InputError(f"trim: a tokenizer of type {kind}, expected BPE, WordPiece or Unigram")
    return np.array(sorted(index for index in wanted if 0 <= index < len(counts)), np.int64)


def trim_tokenizer(tokenizer: Mapping[str, Any], kept: np.ndarray) -> dict[str, Any]:
    """tokenizer.json with the kept tokens only, ids renumbered in their order.

    Raises
    ------
    InputError
        A kept token was left without an id: the tokenizer has parts that this function does not know.
    """
    result = copy.deepcopy(dict(tokenizer))
    new = {int(old): index for index, old in enumerate(kept)}
    kind, model = tokenizer_model_type(tokenizer), result["model"]
    if kind == "Unigram":
        model["vocab"] = [model["vocab"][old] for old in kept if old < len(model["vocab"])]
        if model.get("unk_id") is not None:
            model["unk_id"] = new[model["unk_id"]]
    else:
        model["vocab"] = {token: new[old] for token, old in model["vocab"].items() if old in new}
    if kind == "BPE":
        vocabulary = model["vocab"]
        model["merges"] = [
            [left, right]
            for left, right in bpe_merges(tokenizer)
            if left in vocabulary and right in vocabulary and left + right in vocabulary
        ]
    for added in result.get("added_tokens", ()):
        added["id"] = new[added["id"]]
    _renumber_processor(result.get("post_processor"), new)
    if isinstance(result.get("padding"), dict):
        result["padding"]["pad_id"] = new[result["padding"]["pad_id"]]
    return result


def _renumber_processor(processor: Any, new: Mapping[int, int]) -> None:
    if not isinstance(processor, dict):
        return
    for end in ("sep", "cls"):
        if end in processor:
            processor[end] = [processor[end][0], new[processor[end][1]]]
    for special in (processor.get("special_tokens") or {}).values():
        special["ids"] = [new[index] for index in special["ids"]]
    for part in processor.get("processors", ()):
        _renumber_processor(part, new)


def renumber_config(config: Mapping[str, Any], kept: np.ndarray) -> dict[str, Any]:
    """config.json of the trimmed model: the vocabulary's size and every special id."""
    new = {int(old): index for index, old in enumerate(kept)}
    result = {**config, "vocab_size": len(kept)}
    for name, value in config.items():
        if name.endswith("_token_id") and isinstance(value, int):
            result[name] = new[value]
    return result


def renumber_tokenizer_config(text: str, kept: np.ndarray) -> str:
    """tokenizer_config.json with the ids of added tokens renumbered."""
    new = {int(old): index for index, old in enumerate(kept)}
    config = json.loads(text)
    if isinstance(config.get("added_tokens_decoder"), dict):
        config["added_tokens_decoder"] = {
            str(new[int(old)]): value for old, value in config["added_tokens_decoder"].items() if int(old) in new
        }
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"
