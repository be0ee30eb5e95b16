"""How two tokenizers of one checkpoint segment the same texts, as transformers loads them.

A text is *as before* where every piece is the same old token at the same place. It is changed *within new tokens* where
that holds outside the spans of new tokens, and *elsewhere* where it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wals_spark.errors import InputError
from wals_spark.tokenizer import LoadedTokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BATCH = 256
_LENGTH = 12
_SPECIAL = tuple(f"{name}_token_id" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
Piece = tuple[int, int, int]
"""Id of a piece, where it begins and where it ends in the text."""


@dataclass(frozen=True)
class SegmentationChanges:
    """Numbers of texts.

    Attributes
    ----------
    texts : int
    unchanged : int
        As before.
    dropped : int
        With tokens of the old tokenizer that the new one does not have.
    within : int
        Changed within new tokens alone.
    elsewhere : tuple of int
        The others that changed: their places among the texts.
    without_new : int
        Of those, texts that hold no new token at all.
    """

    texts: int
    unchanged: int
    dropped: int
    within: int
    elsewhere: tuple[int, ...]
    without_new: int = 0


def compare_segmentation(
    old: Callable[[list[str]], list[list[Piece]]],
    new: Callable[[list[str]], list[list[Piece]]],
    origin: np.ndarray,
    texts: Sequence[str],
) -> SegmentationChanges:
    """Segment texts with both tokenizers and count how they differ.

    Parameters
    ----------
    old, new : callable
        Texts -> pieces of each.
    origin : int64 array of shape (V',)
        The old id of each new one, -1 for a new token.
    texts : sequence of str

    Returns
    -------
    SegmentationChanges
    """
    kept = set(origin[origin >= 0].tolist())
    unchanged = dropped = within = without_new = 0
    elsewhere = []
    for begin in range(0, len(texts), _BATCH):
        part = list(texts[begin : begin + _BATCH])
        for place, (before, after) in enumerate(zip(old(part), new(part), strict=True), begin):
            mapped = [(int(origin[i]) if i < len(origin) else -2, start, end) for i, start, end in after]
            if mapped == before:
                unchanged += 1
            elif any(index not in kept for index, _, _ in before):
                dropped += 1
            elif _same_outside_new_tokens(before, mapped):
                within += 1
            else:
                elsewhere.append(place)
                without_new += all(index != -1 for index, _, _ in mapped)
    return SegmentationChanges(len(texts), unchanged, dropped, within, tuple(elsewhere), without_new)


def _same_outside_new_tokens(before: Sequence[Piece], after: Sequence[Piece]) -> bool:
    """Whether the pieces that lie in no new token (id -1) are the same."""
    spans = [(start, end) for index, start, end in after if index == -1]
    inside = {piece for piece in before if any(start <= piece[1] and piece[2] <= end for start, end in spans)}
    return bool(spans) and [piece for piece in before if piece not in inside] == [
        piece for piece in after if piece[0] != -1
    ]


@dataclass(frozen=True)
class AutoPieces:
    """A checkpoint's tokenizer as AutoTokenizer loads it.

    Attributes
    ----------
    pieces : callable
        Texts -> pieces of each, special tokens included.
    special : dict of str to int
        ``mask_token_id`` and the like.
    """

    pieces: Callable[[list[str]], list[list[Piece]]]
    special: dict[str, int]


def load_auto_pieces(directory: Path) -> AutoPieces:
    """The tokenizer of a checkpoint as AutoTokenizer loads it.

    Raises
    ------
    InputError
        It does not load, or has no fast version.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library raises nearly every kind on files that do not fit
        raise InputError(
            f"{directory}: AutoTokenizer does not load it ({type(error).__name__}: {str(error)[:200]})"
        ) from None
    if not tokenizer.is_fast:
        raise InputError(f"{directory}: {type(tokenizer).__name__} is no fast tokenizer")

    def pieces(texts: list[str]) -> list[list[Piece]]:
        found = tokenizer(texts, return_offsets_mapping=True, add_special_tokens=True, truncation=False, verbose=False)
        return [
            [(index, start, end) for index, (start, end) in zip(ids, offsets, strict=True)]
            for ids, offsets in zip(found["input_ids"], found["offset_mapping"], strict=True)
        ]

    special = {name: getattr(tokenizer, name, None) for name in _SPECIAL}
    return AutoPieces(pieces, {name: index for name, index in special.items() if index is not None})


def pieces_of(tokenizer: Tokenizer) -> Callable[[list[str]], list[list[Piece]]]:
    """Texts -> pieces of each, without special tokens."""

    def pieces(texts: list[str]) -> list[list[Piece]]:
        found = tokenizer.encode_batch(texts, add_special_tokens=False)
        return [
            [(index, start, end) for index, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)]
            for encoding in found
        ]

    return pieces


def random_texts(tokenizer: LoadedTokenizer, count: int, seed: int) -> list[str]:
    """Texts of random tokens, where none of a corpus are at hand."""
    ordinary = np.setdiff1d(np.arange(len(tokenizer.tokens)), list(tokenizer.special_ids))
    chosen = np.random.default_rng(seed).choice(ordinary, (count, _LENGTH))
    return [str(tokenizer.tokenizer.decode(row.tolist())) for row in chosen]
