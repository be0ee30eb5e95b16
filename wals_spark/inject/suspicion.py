r"""Which rows moved in a way that the rest does not explain: signs of embedding poisoning in a pair of checkpoints.

Poisoning an embedding means changing one row, or a few, by much (the trigger word's) and leaving the rest.
With D_i = |e'_i - e_i| over the rows that changed, row i is flagged where

- few rows changed at all (at most `FEW`), or
- log D_i lies more than `LIMIT` robust standard deviations (1.4826 MAD) above the median of its log D, or
- the row grew beyond every row of the base: |e'_i| > 1.5 max_j |e_j|.

An injection moves many rows by amounts of one distribution; fine-tuning does too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from wals_spark.errors import InputError
from wals_spark.inject.checkpoint import embedding_values, open_checkpoint

FEW = 8
LIMIT = 6.0
GROWTH = 1.5


@dataclass(frozen=True)
class Suspicion:
    """What a comparison of two embeddings found.

    Attributes
    ----------
    changed : int
        Rows that differ.
    rows : int64 array
        Flagged ids, the longest displacement first.
    displacement : float64 array
        Of the flagged rows.
    """

    changed: int
    rows: np.ndarray
    displacement: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"changed": self.changed, "rows": self.rows.tolist(), "displacement": self.displacement.tolist()}


def suspicious_rows(old: np.ndarray, new: np.ndarray) -> Suspicion:
    """Compare two embeddings (V, d) of the same tokens; see the module's rules."""
    moved = np.linalg.norm(new.astype(np.float64) - old.astype(np.float64), axis=1)
    changed = np.flatnonzero(moved > 0)
    if len(changed) == 0:
        return Suspicion(0, changed, moved[changed])
    if len(changed) <= FEW:
        flagged = changed
    else:
        logs = np.log(moved[changed])
        centre = np.median(logs)
        spread = 1.4826 * max(float(np.median(np.abs(logs - centre))), 0.05)
        longest = float(np.linalg.norm(old.astype(np.float64), axis=1).max())
        grown = np.linalg.norm(new[changed].astype(np.float64), axis=1) > GROWTH * longest
        flagged = changed[(logs > centre + LIMIT * spread) | grown]
    flagged = flagged[np.argsort(-moved[flagged], kind="stable")]
    return Suspicion(len(changed), flagged, moved[flagged])


def compare_checkpoints(before: str, after: str) -> Suspicion:
    """`suspicious_rows` of two checkpoints, whoever made them.

    Raises
    ------
    InputError
        They have embeddings of different shape.
    """
    old, new = open_checkpoint(before, "before"), open_checkpoint(after, "after")
    if (old.size, old.width) != (new.size, new.width):
        raise InputError(
            f"{before} has an embedding of {old.size} x {old.width}, {after} of {new.size} x {new.width}: rows can "
            "only be compared between checkpoints of one vocabulary and width"
        )
    return suspicious_rows(embedding_values(old), embedding_values(new))
