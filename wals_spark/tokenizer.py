"""Hugging Face fast tokenizers: loading, special ids, and the hash that names a vocabulary."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wals_spark.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedTokenizer:
    """A fast tokenizer with what the pipeline must know of it.

    Attributes
    ----------
    tokenizer : tokenizers.Tokenizer
        Without truncation and padding.
    tokens : tuple of str
        Token strings by id; a gap in the ids is filled by ``<gap:ID>``.
    special_ids : frozenset of int
        Ids that no text may produce and no row may change.
    hash : str
        `vocabulary_hash` of `tokens`.
    """

    tokenizer: Tokenizer
    tokens: tuple[str, ...]
    special_ids: frozenset[int]
    hash: str


def vocabulary_hash(tokens: Iterable[str]) -> str:
    """SHA-256 of the token strings in the order of their ids, its first 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for token in tokens:
        digest.update(token.encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def load_tokenizer(source: str) -> LoadedTokenizer:
    """Load a fast tokenizer.

    Parameters
    ----------
    source : path of a tokenizer.json, of a directory holding one, or a name on the hub

    Raises
    ------
    InputError
        Nothing there, a tokenizer without a fast version, or a file that does not parse.
    """
    tokenizer = _load(source)
    if getattr(tokenizer.model, "dropout", None):
        logger.warning(
            "the tokenizer %s has BPE dropout %g: every use would cut words another way, so it is set to none",
            source,
            tokenizer.model.dropout,
        )
        tokenizer.model.dropout = None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    if not vocabulary:
        raise InputError(f"the tokenizer {source} has no tokens")
    size = max(vocabulary.values()) + 1
    tokens = [f"<gap:{index}>" for index in range(size)]
    for token, index in vocabulary.items():
        tokens[index] = token
    special = frozenset(index for index, added in tokenizer.get_added_tokens_decoder().items() if added.special)
    return LoadedTokenizer(tokenizer, tuple(tokens), special, vocabulary_hash(tokens))


def unknown_id(rules: Mapping[str, Any], vocabulary: Mapping[str, int]) -> int | None:
    """The id of a tokenizer's unknown token; None where it has none.

    Parameters
    ----------
    rules : mapping of str to object
        A parsed tokenizer.json.
    vocabulary : mapping of str to int
        Ids by token.
    """
    model = rules.get("model") or {}
    if model.get("unk_id") is not None:
        return int(model["unk_id"])
    return vocabulary.get(model["unk_token"]) if model.get("unk_token") is not None else None


def _load(source: str) -> Tokenizer:
    from tokenizers import Tokenizer

    path = os.path.join(source, "tokenizer.json") if os.path.isdir(source) else source
    if os.path.isfile(path):
        try:
            return Tokenizer.from_file(path)
        except Exception as error:  # tokenizers raises a bare Exception
            raise InputError(
                f"{path} is not a tokenizer.json that this version of tokenizers reads: {error}"
            ) from error
    if os.path.isdir(source):
        names = sorted(os.listdir(source))
        raise InputError(
            f"{source} has no tokenizer.json (it holds {', '.join(names[:8])}): a fast tokenizer is needed. "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...) writes one where transformers can convert it"
        )
    if source.endswith(".json") or source.startswith((".", "/", "~")):
        raise InputError(f"there is no tokenizer at {source}")
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise InputError(f"the tokenizer {source!r} is neither a path nor to be had from the hub: {error}") from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise InputError(f"the tokenizer {source!r} has no fast version (found {type(loaded).__name__})")
    return Tokenizer.from_str(json.dumps(json.loads(backend.to_str())))
