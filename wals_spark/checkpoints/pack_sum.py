r"""A base and domain packs added: E'_v = E0_v + sum_p s_p D_pv and b'_v = b0_v + sum_p s_p d_pv.

Sums are in float64, in the order of the packs' hashes, and rounded once to float32 and then to the dtype of the base,
to nearest with ties to even; so the result does not depend on the order in which packs are given. A pack of strength 0
counts for nothing, to the bit. Where one ``fp32`` pack of strength 1 moves a row alone, its values are taken as they
are. Rows that no pack holds keep every bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wals_spark.checkpoints.domain_pack import ROWS_AT_ONCE, DomainPack
from wals_spark.checkpoints.edit import BaseCheckpoint, EmbeddingEdit
from wals_spark.checkpoints.raw_tensor import RawTensor, from_values, gather_rows
from wals_spark.errors import ConfigError, InputError

_LARGEST_STRENGTH = 1000.0


@dataclass(frozen=True)
class ScaledPack:
    """A pack and its strength s, which scales its differences."""

    pack: DomainPack
    strength: float


def scaled_packs(packs: Sequence[DomainPack], strengths: Sequence[float]) -> list[ScaledPack]:
    """Packs with their strengths, one for all or one for each, in the order of their hashes.

    Raises
    ------
    ConfigError
        Another number of strengths, one that is not finite, or a pack that is given twice.
    """
    if len(strengths) not in (1, len(packs)):
        raise ConfigError(f"{len(strengths)} strengths for {len(packs)} packs: give one for all or one for each")
    odd = [strength for strength in strengths if not -_LARGEST_STRENGTH <= strength <= _LARGEST_STRENGTH]
    if odd:
        raise ConfigError(f"the strength of a pack is {odd[0]!r:.60}, expected a number up to {_LARGEST_STRENGTH:g}")
    given = strengths if len(strengths) == len(packs) else list(strengths) * len(packs)
    found = {pack.sha256: ScaledPack(pack, float(strength)) for pack, strength in zip(packs, given, strict=True)}
    if len(found) < len(packs):
        raise ConfigError("a pack is given twice: give it once, with the sum of its strengths")
    return [found[sha256] for sha256 in sorted(found)]


@dataclass(frozen=True)
class PackBase:
    """What a checkpoint must be for a pack to apply to it.

    Attributes
    ----------
    source : str
        Its name, for messages.
    tensors : dict of str to str
        SHA-256 of every tensor.
    embedding : str
        Name of the embedding (V, d).
    head_bias : str or None
        Name of the head bias (V,).
    shape : tuple of int
        (V, d).
    vocabulary : str
        Hash of its tokens.
    protected : int64 array of shape (p,)
        Rows that never move.
    """

    source: str
    tensors: Mapping[str, str]
    embedding: str
    head_bias: str | None
    shape: tuple[int, ...]
    vocabulary: str
    protected: np.ndarray


def check_pack_base(pack: DomainPack, what: str, base: PackBase) -> None:
    """Raise `InputError` where a pack, the file `what`, was made for another checkpoint or moves protected rows.

    The message has the hash that was found and the one that was expected.
    """
    made_for = pack.header["base"]
    remedy = f"apply it to the checkpoint that it was made from ({made_for['source']})"
    if base.vocabulary != pack.header["vocabulary"]["hash"]:
        raise InputError(
            f"{what} is for a vocabulary of the hash {pack.header['vocabulary']['hash']}, the tokenizer of "
            f"{base.source} has {base.vocabulary}: {remedy}"
        )
    recorded = made_for["tensors"]
    first = [name for name in (made_for["embedding"], made_for["head_bias"]) if name is not None]
    for name in [*first, *sorted(recorded.keys() | base.tensors.keys())]:
        if recorded.get(name) != base.tensors.get(name):
            raise InputError(
                f"{what} was made for another base: {name} of {base.source} has the SHA-256 "
                f"{base.tensors.get(name, 'of no such tensor')}, expected {recorded.get(name, 'no such tensor')}; "
                f"{remedy}"
            )
    said = made_for["embedding"], made_for["head_bias"], pack.shape
    found = base.embedding, base.head_bias, tuple(base.shape)
    if said != found or (base.head_bias is None and len(pack.bias_ids)):
        raise InputError(f"{what} is for {said}, {base.source} has {found}: {remedy}")
    touched = np.intersect1d(pack.ids, base.protected)
    if len(touched):
        raise InputError(
            f"{what} moves {len(touched)} rows of special or reserved tokens (first: {touched[:5].tolist()}), which "
            "never move: it was not written by wals_spark"
        )


def union_of_ids(packs: Sequence[ScaledPack]) -> tuple[np.ndarray, int]:
    """Ids of the rows that acting packs hold, ascending int64, and how many of them are in several packs."""
    parts = [each.pack.ids for each in packs if each.strength != 0]
    ids, counts = np.unique(np.concatenate([np.zeros(0, np.int64), *parts]), return_counts=True)
    return ids, int((counts > 1).sum())


def moved_rows(packs: Sequence[ScaledPack], embedding: RawTensor) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """New values of the rows that packs hold, a few thousand at a time.

    Parameters
    ----------
    packs : sequence of ScaledPack
        As `scaled_packs` orders them.
    embedding : RawTensor
        Of the base, (V, d).

    Yields
    ------
    ids : int64 array of shape (b,)
        Ascending.
    rows : float32 array of shape (b, d)

    Raises
    ------
    InputError
        A row of the base or of the result is not finite in the embedding's dtype.
    """
    acting = [each for each in packs if each.strength != 0]
    ids, _ = union_of_ids(acting)
    for begin in range(0, len(ids), ROWS_AT_ONCE):
        part = ids[begin : begin + ROWS_AT_ONCE]
        old = gather_rows(embedding, part).values().astype(np.float64)
        total, held = np.zeros_like(old), np.zeros(len(part), np.int64)
        found = [_places(each.pack.ids, part) for each in acting]
        with np.errstate(over="ignore", invalid="ignore"):
            for each, (there, index) in zip(acting, found, strict=True):
                total[there] += each.strength * each.pack.row_differences(index, old[there])
                held[there] += 1
            new = (old + total).astype(np.float32)
            for each, (there, index) in zip(acting, found, strict=True):
                if each.pack.holds_values and each.strength == 1:
                    alone = held[there] == 1
                    new[there[alone]] = each.pack.rows[index[alone]]
            finite = np.isfinite(from_values(new, embedding.dtype).values()).all(axis=1)
        if not finite.all():
            raise InputError(
                f"row {part[~finite][0]} of the embedding would not be finite in {embedding.dtype}: the base is "
                "damaged, or a strength is too great"
            )
        yield part, new


def moved_head_bias(packs: Sequence[ScaledPack], bias: RawTensor) -> np.ndarray | None:
    """The whole new head bias, float64 (V,), or None where no acting pack moves it.

    Raises
    ------
    InputError
        An entry is not finite in the dtype of the bias.
    """
    acting = [each for each in packs if each.strength != 0 and len(each.pack.bias_ids)]
    if not acting:
        return None
    old = bias.values().astype(np.float64)
    total, held = np.zeros_like(old), np.zeros(len(old), np.int64)
    with np.errstate(over="ignore", invalid="ignore"):
        for each in acting:
            ids = each.pack.bias_ids
            total[ids] += each.strength * each.pack.bias_differences(old[ids])
            held[ids] += 1
        moved = np.flatnonzero(held)
        new = old.copy()
        new[moved] = (old + total)[moved].astype(np.float32)
        for each in acting:
            if each.pack.holds_values and each.strength == 1:
                alone = held[each.pack.bias_ids] == 1
                new[each.pack.bias_ids[alone]] = each.pack.bias[alone]
        finite = np.isfinite(from_values(new, bias.dtype).values())
    if not finite.all():
        raise InputError(
            f"entry {np.flatnonzero(~finite)[0]} of the head bias would not be finite in {bias.dtype}: the base is "
            "damaged, or a strength is too great"
        )
    return new


def edit_of_packs(packs: Sequence[ScaledPack], base: BaseCheckpoint) -> EmbeddingEdit:
    """The edit of a base that packs add up to; its facts say how many rows and biases several packs move."""
    embedding = base.tensors[base.embedding]
    ids, overlap = union_of_ids(packs)
    rows = np.empty((len(ids), embedding.shape[1]), np.float32)
    begin = 0
    for part, new in moved_rows(packs, embedding):
        rows[begin : begin + len(part)] = new
        begin += len(part)
    acting = [each for each in packs if each.strength != 0]
    biases = np.bincount(
        np.concatenate([np.zeros(0, np.int64), *(each.pack.bias_ids for each in acting)]), minlength=embedding.shape[0]
    )
    facts = {
        "rows_of_packs": len(ids),
        "biases_of_packs": int((biases > 0).sum()),
        "rows_of_several_packs": overlap,
        "biases_of_several_packs": int((biases > 1).sum()),
    }
    bias = moved_head_bias(packs, base.tensors[base.head_bias]) if base.head_bias is not None else None
    return EmbeddingEdit(ids, rows, bias, shares_of_packs(packs, embedding.shape[0]), {}, facts)


def shares_of_packs(packs: Sequence[ScaledPack], size: int) -> np.ndarray:
    """sum_p |s_p| share_p of each row, float32 (V,), where every acting pack declares shares; else zeros."""
    found = np.zeros(size, np.float32)
    for each in packs:
        if each.strength == 0:
            continue
        if each.pack.share is None:
            return np.zeros(size, np.float32)
        found[each.pack.ids] += np.float32(abs(each.strength)) * each.pack.share
    return found


def _places(ids: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions in `wanted` of those that `ids` (ascending) holds, and their positions in `ids`."""
    index = np.minimum(np.searchsorted(ids, wanted), max(len(ids) - 1, 0))
    there = np.flatnonzero(ids[index] == wanted) if len(ids) else np.zeros(0, np.int64)
    return there, index[there]
