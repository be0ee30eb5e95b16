r"""Smaller vocabularies: keep the tokens that a corpus uses, and segment its text exactly as before.

BPE needs the *merge closure* of the kept tokens: with a token, both parts of every merge that makes it, and their
parts. Proof that text whose tokens are all kept segments as before: every token that the full tokenizer merges on the
way to a kept one is in the closure, so every merge it applies is kept; kept merges stay in order; so the first
applicable merge is the same one at every step. WordPiece (longest match) and Unigram (best path) need no closure: a
removed token was never chosen. Text with a dropped token falls apart into smaller pieces, held-out text included.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wals_spark.checkpoints.json_file import read_json_object
from wals_spark.checkpoints.special_tokens import config_token_ids
from wals_spark.errors import InputError
from wals_spark.inject.vocabulary.tokenizer_json import (
    bpe_merges,
    merged,
    subword_affixes,
    token_ids,
    tokenizer_model_type,
)

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_OTHER_IDS = ("suppress_tokens", "begin_suppress_tokens", "forced_decoder_ids", "bad_words_ids", "sequence_bias")


def merge_closure(kept: Iterable[str], merges: Iterable[tuple[str, str]], prefix: str = "") -> set[str]:
    """`kept` with both parts of every merge that makes one of them, recursively; see `merged` for `prefix`."""
    parts: dict[str, list[str]] = {}
    for left, right in merges:
        parts.setdefault(merged(left, right, prefix), []).extend((left, right))
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
    model = tokenizer["model"]
    prefix, suffix = subword_affixes(tokenizer)
    wanted |= {index for token, index in ids.items() if len(token.removeprefix(prefix).removesuffix(suffix)) == 1}
    wanted |= _processor_ids(tokenizer.get("post_processor"))
    if isinstance(tokenizer.get("padding"), Mapping):
        wanted.add(tokenizer["padding"]["pad_id"])
    if model.get("byte_fallback"):
        wanted |= {index for token, index in ids.items() if _BYTE.fullmatch(token)}
    if kind == "BPE":
        tokens = {index: token for token, index in ids.items()}
        closed = merge_closure({tokens[index] for index in wanted if index in tokens}, bpe_merges(tokenizer), prefix)
        wanted |= {ids[token] for token in closed if token in ids}
    elif kind in ("WordPiece", "Unigram"):
        unknown = model.get("unk_token")
        wanted |= {ids[unknown]} if unknown in ids else set()
        wanted |= {model["unk_id"]} if model.get("unk_id") is not None else set()
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
        vocabulary, (prefix, _) = model["vocab"], subword_affixes(tokenizer)
        model["merges"] = [
            [left, right]
            for left, right in bpe_merges(tokenizer)
            if left in vocabulary and right in vocabulary and merged(left, right, prefix) in vocabulary
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


def _processor_ids(processor: Any) -> set[int]:
    """Ids of the tokens that a post-processor puts around a text."""
    if not isinstance(processor, Mapping):
        return set()
    found = {processor[end][1] for end in ("sep", "cls") if end in processor}
    found |= {index for special in (processor.get("special_tokens") or {}).values() for index in special["ids"]}
    return found.union(*(_processor_ids(part) for part in processor.get("processors", ())))


def renumber_ids(config: Mapping[str, Any], kept: np.ndarray, rows: int, what: str) -> dict[str, Any]:
    """A config.json or generation_config.json with the vocabulary's new size and its special ids renumbered.

    Parameters
    ----------
    config : dict of str to object
        The content of the file.
    kept : int64 array of shape (n,)
        Old ids of the tokens that stay, ascending.
    rows : int
        Of the old vocabulary.
    what : str
        The file, for messages.

    Returns
    -------
    dict of str to object

    Raises
    ------
    InputError
        An id that the old vocabulary does not have, or a list of ids that is no special token's.
    """
    new = {int(old): index for index, old in enumerate(kept)}
    result = {**config, **({"vocab_size": len(kept)} if "vocab_size" in config else {})}
    others = [key for key in _OTHER_IDS if config.get(key)]
    if others:
        raise InputError(f"{what}: {others[0]} holds ids of tokens that trim may drop: remove it, or do not trim")
    for key, ids in config_token_ids(config, rows, what).items():
        moved = [new[index] for index in ids]
        result[key] = moved if isinstance(config[key], list) else moved[0]
    return result


def renumber_tokenizer_files(directory: Path, kept: np.ndarray) -> dict[str, str]:
    """tokenizer_config.json, added_tokens.json and special_tokens_map.json with ids renumbered, by name.

    Raises
    ------
    InputError
        One of them is no JSON object, or has a token under an id that is none of tokenizer.json.
    """
    new = {int(old): index for index, old in enumerate(kept)}
    texts: dict[str, str] = {}
    for name in ("tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"):
        if not (directory / name).is_file():
            continue
        content = read_json_object(directory / name)
        try:
            if name == "added_tokens.json":
                content = {token: new[index] for token, index in content.items()}
            elif isinstance(content.get("added_tokens_decoder"), dict):
                content["added_tokens_decoder"] = {
                    str(new[int(old)]): value for old, value in content["added_tokens_decoder"].items()
                }
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{directory / name} has an added token of id {error}, tokenizer.json has none") from None
        texts[name] = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    return texts


def added_token_ids(directory: Path) -> set[int]:
    """Ids in added_tokens.json and in the added_tokens_decoder of tokenizer_config.json."""
    found: set[int] = set()
    for name, key in (("added_tokens.json", None), ("tokenizer_config.json", "added_tokens_decoder")):
        if (directory / name).is_file():
            content = read_json_object(directory / name)
            ids = content.values() if key is None else (content.get(key) or {})
            found |= {int(index) for index in ids if str(index).isdecimal()}
    return found
