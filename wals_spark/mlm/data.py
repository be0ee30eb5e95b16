"""Sequences of fixed length and masks fixed by a seed: the same in every arm of a comparison.

Documents are cut into pieces, the pieces packed behind one another (``</s>`` between two documents) and
the stream cut into sequences ``<s> ... </s>`` without padding, so that no computation is wasted and no
attention mask is needed. Every position knows its document, which is the unit of resampling.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from wals_spark.errors import InputError
from wals_spark.tokenizer import LoadedTokenizer

NO_DOCUMENT = -1
REPLACED_BY_MASK = 0.8
REPLACED_AT_RANDOM = 0.1


@dataclass(frozen=True)
class SpecialIds:
    """The ids a masked language model needs.

    Attributes
    ----------
    start, end, mask : int
        Of ``<s>``, ``</s>``, ``<mask>`` (``[CLS]``, ``[SEP]``, ``[MASK]`` in BERT's family).
    all : frozenset of int
        Every special id: never masked, never drawn as a random replacement.
    size : int
        Number of ids.
    """

    start: int
    end: int
    mask: int
    all: frozenset[int]
    size: int


@dataclass(frozen=True)
class PackedSequences:
    """Sequences.

    Attributes
    ----------
    ids : int32 array of shape (n, L)
    document : int32 array of shape (n, L)
        Number of the document of each position; `NO_DOCUMENT` at special tokens.
    documents : int
        How many documents gave at least one token.
    """

    ids: np.ndarray
    document: np.ndarray
    documents: int

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class MaskedSequences:
    """Sequences with their masks.

    Attributes
    ----------
    inputs : int32 array of shape (n, L)
        What the model sees.
    row, column : int32 arrays of shape (t,)
        The positions to predict, in the order of the rows.
    target : int32 array of shape (t,)
        The right ids there.
    document : int32 array of shape (t,)
        The documents of the targets.
    """

    inputs: np.ndarray
    row: np.ndarray
    column: np.ndarray
    target: np.ndarray
    document: np.ndarray

    def __len__(self) -> int:
        return len(self.target)


def special_ids(loaded: LoadedTokenizer) -> SpecialIds:
    """The special ids of a tokenizer, by the names that RoBERTa's and BERT's families use.

    Raises
    ------
    InputError
        One of the three is missing; names the candidates that were searched for.
    """

    def find(role: str, names: tuple[str, ...]) -> int:
        for name in names:
            index = loaded.tokenizer.token_to_id(name)
            if index is not None:
                return int(index)
        raise InputError(
            f"the tokenizer has no {role} token (looked for {', '.join(names)}): "
            "masked language modelling needs one; add it as a special token"
        )

    start = find("start", ("<s>", "[CLS]"))
    end = find("end", ("</s>", "[SEP]"))
    mask = find("mask", ("<mask>", "[MASK]"))
    return SpecialIds(start, end, mask, loaded.special_ids | {start, end, mask}, len(loaded.tokens))


def encode(loaded: LoadedTokenizer, texts: Iterable[str], *, batch: int = 256) -> list[np.ndarray]:
    """Token ids of every text, without special tokens: a list of int32 arrays."""
    encoded: list[np.ndarray] = []
    buffer: list[str] = []

    def flush() -> None:
        for encoding in loaded.tokenizer.encode_batch_fast(buffer, add_special_tokens=False):
            encoded.append(np.asarray(encoding.ids, np.int32))
        buffer.clear()

    for text in texts:
        buffer.append(text)
        if len(buffer) == batch:
            flush()
    flush()
    return encoded


def pack_sequences(
    documents: Sequence[np.ndarray],
    special: SpecialIds,
    length: int,
    *,
    limit: int | None = None,
    round_robin: bool = False,
) -> PackedSequences:
    """Pack documents into sequences of `length`.

    Parameters
    ----------
    documents : sequence of int32 arrays
        Token ids without special tokens, one array per document.
    special : SpecialIds
    length : int
        Tokens per sequence, ``<s>`` and ``</s>`` included.
    limit : int or None
        Sequences at most.
    round_robin : bool
        Take the first piece (length - 2 tokens) of every document, then the second of every one, and
        so on, so that a limited sample holds as many documents as it can.

    Returns
    -------
    PackedSequences
        Without the last sequence where it would not be full.
    """
    if length < 3:
        raise InputError(f"sequence length {length}: expected at least 3 (two special tokens and one of text)")
    body = length - 2
    needed = None if limit is None else limit * body
    pieces = _round_robin(documents, body) if round_robin else ((index, ids) for index, ids in enumerate(documents))
    tokens: list[np.ndarray] = []
    owners: list[np.ndarray] = []
    total, previous = 0, NO_DOCUMENT
    separator = np.array([special.end], np.int32)
    nobody = np.array([NO_DOCUMENT], np.int32)
    for index, ids in pieces:
        if len(ids) == 0:
            continue
        if total % body and previous != index:
            tokens.append(separator)
            owners.append(nobody)
            total += 1
        tokens.append(np.asarray(ids, np.int32))
        owners.append(np.full(len(ids), index, np.int32))
        total += len(ids)
        previous = index
        if needed is not None and total >= needed:
            break
    rows = total // body if limit is None else min(total // body, limit)
    flat = np.concatenate(tokens)[: rows * body] if tokens else np.empty(0, np.int32)
    owner = np.concatenate(owners)[: rows * body] if owners else np.empty(0, np.int32)
    ids = np.empty((rows, length), np.int32)
    document = np.full((rows, length), NO_DOCUMENT, np.int32)
    ids[:, 0], ids[:, -1] = special.start, special.end
    ids[:, 1:-1] = flat.reshape(rows, body)
    document[:, 1:-1] = owner.reshape(rows, body)
    return PackedSequences(ids, document, len(np.unique(owner[owner >= 0])))


def _round_robin(documents: Sequence[np.ndarray], body: int) -> Iterable[tuple[int, np.ndarray]]:
    start = 0
    remaining = list(range(len(documents)))
    while remaining:
        for index in remaining:
            yield index, documents[index][start : start + body]
        start += body
        remaining = [index for index in remaining if len(documents[index]) > start]


def mask_tokens(packed: PackedSequences, special: SpecialIds, fraction: float, seed: int) -> MaskedSequences:
    """Choose ``round(fraction x maskable)`` positions of every sequence (at least one) and hide them.

    Of the chosen, 80 % become ``<mask>``, 10 % a random id that is not special, 10 % stay. The choice
    depends on the sequences, the special ids and the seed, on nothing else.

    Parameters
    ----------
    packed : PackedSequences
    special : SpecialIds
    fraction : float
        Above 0 and below 1.
    seed : int

    Returns
    -------
    MaskedSequences

    Raises
    ------
    InputError
        `fraction` is out of its range.

    References
    ----------
    Devlin et al. (2019), BERT: Pre-training of Deep Bidirectional Transformers, NAACL.
    """
    if not 0 < fraction < 1:
        raise InputError(f"mask fraction {fraction}: expected a number between 0 and 1")
    generator = np.random.default_rng([seed, 0])
    ids = packed.ids
    maskable = (packed.document != NO_DOCUMENT) & ~np.isin(ids, list(special.all))  # (n, L)
    counts = maskable.sum(axis=1)
    wanted = np.where(counts > 0, np.maximum(1, np.rint(fraction * counts)), 0).astype(np.int64)
    draw = generator.random(ids.shape, dtype=np.float32)
    draw[~maskable] = 2.0
    order = np.argsort(draw, axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(ids.shape[1])[None, :], axis=1)
    row, column = np.nonzero(rank < wanted[:, None])
    return mask_positions(packed, row, column, special, generator)


def mask_positions(
    packed: PackedSequences,
    row: np.ndarray,
    column: np.ndarray,
    special: SpecialIds,
    generator: np.random.Generator,
    *,
    always_mask: bool = False,
) -> MaskedSequences:
    """Hide given positions, 80/10/10 as `mask_tokens` does, or all by ``<mask>`` with ``always_mask``.

    Parameters
    ----------
    packed : PackedSequences
    row, column : int array of shape (t,)
        The positions.
    special : SpecialIds
    generator : numpy.random.Generator
    always_mask : bool

    Returns
    -------
    MaskedSequences
    """
    target = packed.ids[row, column]
    inputs = packed.ids.copy()
    if always_mask:
        inputs[row, column] = special.mask
    else:
        ordinary = np.setdiff1d(np.arange(special.size, dtype=np.int32), np.array(sorted(special.all), np.int32))
        fate = generator.random(len(row))
        random_ids = ordinary[generator.integers(len(ordinary), size=len(row))]
        replaced = np.where(fate < REPLACED_BY_MASK + REPLACED_AT_RANDOM, random_ids, target)
        inputs[row, column] = np.where(fate < REPLACED_BY_MASK, special.mask, replaced)
    document = packed.document[row, column]
    return MaskedSequences(inputs, row.astype(np.int32), column.astype(np.int32), target.astype(np.int32), document)
