"""Mode ``transfer``: a checkpoint with the corpus' tokenizer in place of its own.

Shared tokens (`wals_spark.inject.vocabulary.shared_tokens`) keep their rows and head biases to the bit, under new ids;
rows of all others are combinations of rows of shared tokens (`wals_spark.inject.vocabulary.transfer`), their head
bias a + g log(c + 1/2) with a and g fitted on shared tokens. The encoder stays as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wals_spark.checkpoints import checkpoint as ckpt
from wals_spark.checkpoints.edit import EmbeddingEdit, TokenFactors
from wals_spark.checkpoints.json_file import read_json_object
from wals_spark.checkpoints.special_tokens import default_token_ids
from wals_spark.config import InjectConfig
from wals_spark.errors import InputError
from wals_spark.inject.gate import AlignmentFit
from wals_spark.inject.modes import aligned_rows
from wals_spark.inject.proposal import TokenFrequencies, align_factors
from wals_spark.inject.vocabulary import extend, transfer
from wals_spark.inject.vocabulary.shared_tokens import ROLES, shared_origin, special_roles, token_convention
from wals_spark.mlm.positions import PADDED_ROWS
from wals_spark.tokenizer import LoadedTokenizer

_NEEDED = ("cls_token", "sep_token", "pad_token")
_CLASS = "PreTrainedTokenizerFast"
"""Reads any tokenizer.json as it is."""


@dataclass(frozen=True)
class Transfer:
    """What a transfer takes from the old tokenizer to the new one.

    Attributes
    ----------
    origin : int64 array of shape (T',)
        The old id of each new token, -1 for one that only the new tokenizer has.
    protected : int64 array of shape (p,)
        Old ids of the special and reserved tokens that the new tokenizer has too.
    pieces : list of int64 array
        Old ids of the pieces of each token with origin -1, in the order of their ids; empty where there are none.
    config : dict of str to object
        config.json for the new vocabulary.
    texts : dict of str to str
        tokenizer.json, tokenizer_config.json and, where the base has one, generation_config.json.
    """

    origin: np.ndarray
    protected: np.ndarray
    pieces: list[np.ndarray]
    config: dict[str, Any]
    texts: dict[str, str]

    @property
    def new_ids(self) -> np.ndarray:
        """Ids of the tokens that only the new tokenizer has, int64 (n,)."""
        return np.flatnonzero(self.origin < 0)


def plan_transfer(opened: ckpt.Checkpoint, old: LoadedTokenizer, new: LoadedTokenizer, source: str) -> Transfer:
    """Match the tokens of two tokenizers, and write the configuration of the result.

    Parameters
    ----------
    opened : Checkpoint
    old : LoadedTokenizer
        Of the checkpoint.
    new : LoadedTokenizer
        Of the corpus.
    source : str
        What ``vocabulary.tokenizer`` names.

    Returns
    -------
    Transfer

    Raises
    ------
    InputError
        The tokenizers share no ordinary token, a special token is missing, or the model could not use the new one.
    """
    before, after = (json.loads(each.tokenizer.to_str()) for each in (old, new))
    described = _described(opened.directory), _described(Path(source).expanduser())
    roles = special_roles(before, described[0]), special_roles(after, described[1])
    _check_special(opened, old, new, roles, source)
    origin = shared_origin(before, after, *roles)
    origin[origin >= opened.vocab_size] = -1
    every = ckpt.protected_ids(old, opened.config, opened.vocab_size)
    _check_shared(np.setdiff1d(origin, np.append(every, -1)), before, after, opened.source, source)
    missing = np.flatnonzero(origin < 0)
    named = {*new.special_ids, *(index for index in missing if new.tokens[index] == f"<gap:{index}>")}
    texts = ["" if index in named else new.tokens[index] for index in missing.tolist()]
    if token_convention(before) != token_convention(after):
        texts = [""] * len(texts)
    stated = {**default_token_ids(opened.config, opened.vocab_size), **opened.config}
    return Transfer(
        origin,
        np.intersect1d(every, origin),
        transfer.pieces_in_old_vocabulary(texts, old, before),
        _renumbered({**stated, "vocab_size": len(new.tokens)}, roles[1]),
        {
            "tokenizer.json": new.tokenizer.to_str(),
            "tokenizer_config.json": _tokenizer_config(described, new, roles[1]),
            **_generation_config(opened.directory, roles[1]),
        },
    )


def _described(directory: Path) -> dict[str, Any]:
    """tokenizer_config.json of a directory; empty where there is none."""
    path = directory / "tokenizer_config.json"
    return read_json_object(path) if path.is_file() else {}


def _check_special(
    opened: ckpt.Checkpoint,
    old: LoadedTokenizer,
    new: LoadedTokenizer,
    roles: tuple[Mapping[str, int], Mapping[str, int]],
    source: str,
) -> None:
    """Raise `InputError` where the new tokenizer lacks a special token that the model needs, or does not use it."""
    needed = [*_NEEDED, *(["mask_token"] if opened.head_bias is not None else [])]
    missing = [role for role in needed if role in roles[0] and role not in roles[1]]
    if missing:
        wanted = ", ".join(f"{role} ({old.tokens[roles[0][role]]})" for role in missing)
        raise InputError(
            f"inject.mode is transfer: {source} has no {wanted}, which {opened.source} needs: train the tokenizer with "
            "these special tokens, or name its own in its tokenizer_config.json"
        )
    pads = roles[0].get("pad_token"), roles[1].get("pad_token")
    if opened.config.get("model_type") in PADDED_ROWS and pads[0] != pads[1]:
        raise InputError(
            f"inject.mode is transfer: the pad token of {source} has id {pads[1]}, expected {pads[0]} as in "
            f"{opened.source}: positions of a {opened.config['model_type']} count from it. Train the tokenizer with "
            f"its special tokens in the order {', '.join(old.tokens[: roles[0]['pad_token'] + 1])}, ..."
        )
    frames = [_framing(loaded, each) for loaded, each in zip((old, new), roles, strict=True)]
    if frames[0] != frames[1]:
        raise InputError(
            f"inject.mode is transfer: {source} puts {frames[1] or 'nothing'} around a text, the tokenizer of "
            f"{opened.source} {frames[0] or 'nothing'}: set its post_processor to do the same, since the encoder knows "
            "no other input"
        )


def _framing(loaded: LoadedTokenizer, roles: Mapping[str, int]) -> str:
    """What the tokenizer puts around a text, as roles."""
    encoding = loaded.tokenizer.encode("a", add_special_tokens=True)
    names = {index: role for role, index in reversed(list(roles.items()))}
    pairs = zip(encoding.ids, encoding.special_tokens_mask, strict=True)
    return " ".join(names.get(index, f"id {index}") for index, put in pairs if put)


def _check_shared(
    shared: np.ndarray, before: Mapping[str, Any], after: Mapping[str, Any], checkpoint: str, source: str
) -> None:
    """Raise `InputError` where no ordinary token is shared: there would be nothing to make rows of."""
    if len(shared) == 0:
        kinds = token_convention(before), token_convention(after)
        why = f"{kinds[1]} strings, expected {kinds[0]}" if kinds[0] != kinds[1] else f"both have {kinds[0]} strings"
        raise InputError(
            f"inject.mode is transfer: {source} shares no token with the tokenizer of {checkpoint} ({why}): rows of "
            "new tokens are made of shared ones. Train a tokenizer of the same kind as the model's"
        )


def _renumbered(config: Mapping[str, Any], roles: Mapping[str, int]) -> dict[str, Any]:
    """A configuration with the new id of every special token; an id without a role in the new tokenizer is left out."""
    result = {}
    for name, value in config.items():
        role = name.removesuffix("_id")
        if name.endswith("_token_id") and isinstance(value, int) and role in ROLES:
            if role in roles:
                result[name] = roles[role]
            continue
        result[name] = value
    return result


def _generation_config(directory: Path, roles: Mapping[str, int]) -> dict[str, str]:
    path = directory / "generation_config.json"
    if not path.is_file():
        return {}
    return {path.name: json.dumps(_renumbered(read_json_object(path), roles), indent=2, sort_keys=True) + "\n"}


def _tokenizer_config(
    described: tuple[Mapping[str, Any], Mapping[str, Any]], new: LoadedTokenizer, roles: Mapping[str, int]
) -> str:
    """The new tokenizer's own tokenizer_config.json, or one that reads tokenizer.json as it is."""
    old, own = described
    found = dict(own)
    if not found:
        found = {"tokenizer_class": _CLASS, **{role: new.tokens[index] for role, index in roles.items()}}
        if isinstance(old.get("model_max_length"), int):
            found["model_max_length"] = old["model_max_length"]
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


def transfer_edit(
    plan: Transfer,
    factors: TokenFactors,
    E: np.ndarray,
    bias: np.ndarray | None,
    special: Sequence[int],
    config: InjectConfig,
    seed: int,
) -> EmbeddingEdit:
    """Rows and head bias of all tokens of the new tokenizer.

    Parameters
    ----------
    plan : Transfer
    factors : TokenFactors
        Of the T' tokens of the new tokenizer.
    E : float32 array of shape (V, d)
        Of the checkpoint.
    bias : float array of shape (V,) or None
    special : sequence of int
        New ids of special tokens, which are no anchors.
    config : InjectConfig
    seed : int

    Returns
    -------
    EmbeddingEdit

    Raises
    ------
    GateError, InputError
        See `wals_spark.inject.proposal.align_factors`; with ``transfer_rows: factors`` only. Fewer anchors than two.

    Notes
    -----
    A new token that the corpus does not hold gets the mean of its old pieces, whatever ``transfer_rows`` is.
    """
    counts, origin, ids = factors.counts, plan.origin, plan.new_ids
    shared = np.flatnonzero((origin >= 0) & ~np.isin(origin, plan.protected))
    anchors = np.setdiff1d(shared[counts[shared] >= config.anchor_min_count], special)
    if len(anchors) < 2:
        raise InputError(
            f"{len(anchors)} of {len(shared)} shared tokens occur {config.anchor_min_count} times or more, expected at "
            "least 2: use a larger corpus or lower inject.anchor_min_count"
        )
    rows, fit = _rows_of_others(plan, factors, E, anchors, config, seed)
    facts: dict[str, Any] = {
        "new_tokens": len(ids),
        "shared_tokens": int((origin >= 0).sum()),
        "anchors": len(anchors),
        "shared_of_corpus": float(counts[origin >= 0].sum() / max(int(counts.sum()), 1)),
        "rows_from": config.transfer_rows,
    }
    mapping: dict[str, np.ndarray] = {}
    gate: Mapping[str, Any] | None = None
    if fit is not None:
        mapping = {"W": fit.alignment.W, "mu_u": fit.alignment.mu_u, "mu_e": fit.alignment.mu_e}
        facts["held_out_r2"], gate = fit.cv.r2, fit.gate.to_json()
    moved = None
    if bias is not None:
        moved = np.where(origin >= 0, bias[np.maximum(origin, 0)], 0.0).astype(np.float64)
        moved[ids] = extend.bias_from_counts(moved, counts, anchors, counts[ids])
    share = np.zeros(len(counts), np.float32)
    share[ids] = 1.0
    return EmbeddingEdit(ids, rows, moved, share, mapping, facts, gate, origin)


def _rows_of_others(
    plan: Transfer, factors: TokenFactors, E: np.ndarray, anchors: np.ndarray, config: InjectConfig, seed: int
) -> tuple[np.ndarray, AlignmentFit | None]:
    """The rows that ``transfer_rows`` names, float32 (n, d), and the alignment that they come from, if any."""
    how, ids, counts = config.transfer_rows, plan.new_ids, factors.counts
    if how in ("mean", "random"):
        return transfer.row_baseline(how, E, plan.pieces, seed), None
    rows = transfer.row_baseline("subtokens", E, plan.pieces, seed)
    seen = np.flatnonzero(counts[ids] > 0)
    if how in ("focus", "omp"):
        rows[seen] = transfer.combined_rows(how, factors.matrix, ids[seen], anchors, E[plan.origin[anchors]])
    if how != "factors":
        return rows, None
    known = np.zeros((len(counts), E.shape[1]), np.float32)
    known[anchors] = E[plan.origin[anchors]]
    same = TokenFrequencies(counts.astype(np.float64), counts.astype(np.float64))
    fit = align_factors(factors, known, np.setdiff1d(np.arange(len(counts)), anchors), same, config, seed)
    rows[seen] = aligned_rows(fit, factors, known, ids[seen])
    return rows, fit
