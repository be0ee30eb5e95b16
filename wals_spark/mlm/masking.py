"""Several maskings of a sequence that depend on nothing but its name and a seed.

A masking hides ``k = max(1, round(fraction n))`` of a sequence's n ordinary positions, all behind the mask token. The
positions are put in the order of a hash of (seed, document, start, cycle, position); masking m of a cycle hides the
m-th k of them. So the maskings of a cycle, floor(n / k) of them, hide different positions, and a sequence masked M
times gives as many different targets as it can; the first maskings do not depend on how many there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wals_spark.errors import InputError
from wals_spark.mlm.data import SpecialIds
from wals_spark.mlm.text_sequences import TextSequences
from wals_spark.splitmix64 import hash_words

_MASK = 0x6D61736B
"""Keeps the hashes of masks apart from others."""


@dataclass(frozen=True)
class Maskings:
    """How sequences are masked.

    Attributes
    ----------
    count : int
        M, maskings of each sequence.
    fraction : float
        Share of the ordinary positions that a masking hides, above 0 and below 1.
    seed : int
    """

    count: int = 4
    fraction: float = 0.15
    seed: int = 1

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 < self.fraction < 1:
            raise InputError(
                f"{self.count} maskings of a share {self.fraction} of the positions: expected at least 1, and a share "
                "between 0 and 1"
            )

    def hidden(self, ordinary: int) -> int:
        """Positions that a masking hides of a sequence with a number of ordinary ones: k, or 0 where there is none."""
        return max(1, round(self.fraction * ordinary)) if ordinary else 0


def is_special(special: SpecialIds) -> np.ndarray:
    """Whether an id is special and is never masked, bool (ids,)."""
    found = np.zeros(max(special.size, max(special.all) + 1), bool)
    found[list(special.all)] = True
    return found


def masked_positions(sequences: TextSequences, index: int, maskings: Maskings, special: np.ndarray) -> np.ndarray:
    """The positions that each masking of a sequence hides.

    Parameters
    ----------
    sequences : TextSequences
    index : int
        Of the sequence.
    maskings : Maskings
    special : bool array of shape (ids,)
        From `is_special`.

    Returns
    -------
    int64 array of shape (M, k)
        Positions in the piece, ascending in each row; k is 0 where every token is special.
    """
    ordinary = np.flatnonzero(~special[sequences.piece(index)])
    k = maskings.hidden(len(ordinary))
    if k == 0:
        return np.empty((maskings.count, 0), np.int64)
    per_cycle = len(ordinary) // k
    cycles = -(-maskings.count // per_cycle)
    name = hash_words(
        _MASK, maskings.seed, sequences.document[index : index + 1], _words(sequences.start[index : index + 1])
    )
    draws = hash_words(int(name[0]), _words(np.arange(cycles)[:, None]), _words(ordinary[None, :]))  # (cycles, n)
    order = np.argsort(draws, axis=1, kind="stable")[:, : per_cycle * k]
    return np.sort(ordinary[order].reshape(-1, k)[: maskings.count], axis=1)


def _words(numbers: np.ndarray) -> np.ndarray:
    return numbers.astype(np.uint64)
