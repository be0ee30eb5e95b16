r"""Rows that moved unlike the others: signs of embedding poisoning in a pair of checkpoints.

Poisoning an embedding means changing one row, or a few, by much (the trigger word's) and leaving the rest.
With D_i = |e'_i - e_i| / s_i over the rows that changed (s_i: the share that an injection declares, else 1),
row i is flagged as

- *lonely* where few rows changed at all (at most `FEW`),
- *far* where log D_i lies more than `LIMIT` robust standard deviations (1.4826 MAD) above the median of its log D,
- *long* where it grew beyond every row of the base: |e'_i| > 1.5 max_j |e_j|.

An injection moves many rows by amounts of one distribution; fine-tuning does too. Dividing by the shares is what
makes a blend's distribution narrow: a row's displacement is its share times a distance that hardly varies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wals_spark.checkpoints.checkpoint import checkpoint_tokenizer, embedding_values, locate_checkpoint, open_checkpoint
from wals_spark.checkpoints.row_comparison import displacements, row_norms
from wals_spark.errors import InputError

FEW = 8
LIMIT = 6.0
GROWTH = 1.5
_LEAST_SHARE = 1e-6
_REASONS = {
    "lonely": "almost no other row changed",
    "far": "far outside the distribution of the other changed rows",
    "long": "longer than any row of the checkpoint before",
}


@dataclass(frozen=True)
class RowOutliers:
    """Rows of an embedding that moved unlike the others.

    Attributes
    ----------
    changed : int
        Number of rows that differ.
    rows : int64 array of shape (n,)
        Ids of the outliers, the longest displacement first.
    displacement : float64 array of shape (n,)
        |e'_i - e_i| of the outliers.
    reasons : tuple of str
        ``lonely``, ``far`` or ``long``, for each outlier.
    """

    changed: int
    rows: np.ndarray
    displacement: np.ndarray
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "changed": self.changed,
            "rows": self.rows.tolist(),
            "displacement": self.displacement.tolist(),
            "reasons": list(self.reasons),
        }

    def lines(self, tokens: Sequence[str] | None = None) -> list[str]:
        """A sentence for each outlier, with its token where `tokens` are known."""
        return [
            f"row {row}{f' {tokens[row]!r}' if tokens is not None and row < len(tokens) else ''} moved by "
            f"{moved:.4g}: {_REASONS[reason]}"
            for row, moved, reason in zip(self.rows.tolist(), self.displacement, self.reasons, strict=True)
        ]


def outlier_rows(
    old: np.ndarray,
    new: np.ndarray,
    shares: np.ndarray | None = None,
    *,
    origin: np.ndarray | None = None,
    few: int = FEW,
) -> RowOutliers:
    """Compare two embeddings by the rules of the module.

    Parameters
    ----------
    old : float array of shape (V, d)
    new : float array of shape (V', d)
    shares : float array of shape (V',), optional
        s_i that an edit declares; a row that moved without a share is ``far``.
    origin : int64 array of shape (V',), optional
        Row of `old` that each row of `new` comes from, -1 for one that is new and not judged; none = the same.
    few : int
        Where no more rows than this changed, all of them are lonely.

    Returns
    -------
    RowOutliers
    """
    origin = np.arange(len(new)) if origin is None else origin
    moved = np.where(origin >= 0, displacements(old, new, origin), 0.0)
    longest = float(row_norms(old).max(initial=0))
    changed = np.flatnonzero(moved > 0)
    if len(changed) == 0:
        return RowOutliers(0, changed, moved[changed], ())
    scale = np.ones(len(changed)) if shares is None else np.maximum(shares[changed], _LEAST_SHARE)
    logs = np.log(moved[changed] / scale)
    centre = np.median(logs)
    spread = 1.4826 * max(float(np.median(np.abs(logs - centre))), 0.05)
    lonely = np.full(len(changed), len(changed) <= few)
    far = logs > centre + LIMIT * spread
    grown = row_norms(new[changed]) > GROWTH * longest
    flagged = np.flatnonzero(lonely | far | grown)
    flagged = flagged[np.argsort(-moved[changed[flagged]], kind="stable")]
    reasons = tuple("long" if grown[i] else "far" if far[i] else "lonely" for i in flagged)
    return RowOutliers(len(changed), changed[flagged], moved[changed[flagged]], reasons)


def compare_checkpoints(before: str, after: str) -> RowOutliers:
    """`outlier_rows` of two checkpoints, whoever made them.

    Raises
    ------
    InputError
        They have embeddings of different shape.
    """
    old, new = open_checkpoint(before, "before"), open_checkpoint(after, "after")
    (V, d), (W, e) = ((each.vocab_size, each.hidden_size) for each in (old, new))
    if (V, d) != (W, e):
        raise InputError(
            f"{before} has an embedding of {V} x {d}, {after} of {W} x {e}: rows can "
            "only be compared between checkpoints of one vocabulary and width"
        )
    return outlier_rows(embedding_values(old), embedding_values(new))


def checkpoint_tokens(source: str) -> Sequence[str] | None:
    """Token strings of a checkpoint by id, None where no tokenizer lies with it."""
    directory = locate_checkpoint(source)
    return checkpoint_tokenizer(directory).tokens if (directory / "tokenizer.json").is_file() else None
