r"""Rows that moved unlike the others: signs of embedding poisoning in a pair of checkpoints.

Poisoning an embedding means changing one row, or a few, by much (the trigger word's) and leaving the rest.
With D_i = |e'_i - e_i| / s_i over the rows that changed (s_i: the share that an injection declares, else 1),
row i is flagged as

- *lonely* where few rows changed at all (at most `FEW`),
- *far* where log D_i lies more than `LIMIT` robust standard deviations (1.4826 MAD) above the median of its log D,
- *long* where it grew beyond every row of the base: |e'_i| > 1.5 max_j |e_j|.

An injection moves many rows by amounts of one distribution; fine-tuning does too. Dividing by the shares is what
makes a blend's distribution narrow: a row's displacement is its share times a distance that hardly varies.

Two checkpoints that anyone made (`compare_checkpoints`) differ by training with weight decay too: rows that no text
touched are then e'_i = c e_i with one c for all. These count as unchanged, and the others' displacements are measured
from c e_i. Few is a share of the vocabulary there (`FEW_OF_VOCABULARY`). Besides, a row is

- *equal* where it became another row's equal, which training does not do,

and an entry of the head bias is flagged where |b'_i - b_i| lies more than `LIMIT` robust standard deviations above the
median of those that changed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wals_spark.checkpoints.checkpoint import checkpoint_tokenizer, locate_checkpoint, read_weights
from wals_spark.checkpoints.raw_tensor import from_values
from wals_spark.checkpoints.row_comparison import displacements, row_hashes, row_norms
from wals_spark.errors import InputError

FEW = 8
FEW_OF_VOCABULARY = 1e-3
_FACTOR_TOLERANCE = 1e-5
"""Relative rounding of a row that only weight decay moved, in float32; half precision has a thousand times that."""
_LEAST_BIAS_SPREAD = 0.02
_EMBEDDING = re.compile(r"(^|\.)(word_embeddings|embed_tokens|tok_embeddings|word_embedding|wte|shared)\.weight$")
_BIASES = ("lm_head.bias", "cls.predictions.bias", "vocab_projector.bias", "decoder.bias")
LIMIT = 6.0
GROWTH = 1.5
_LEAST_SHARE = 1e-6
_REASONS = {
    "lonely": "almost no other row changed",
    "far": "far outside the distribution of the other changed rows",
    "long": "longer than any row of the checkpoint before",
    "equal": "equal to another row, which it was not before",
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
        ``lonely``, ``far``, ``long`` or ``equal``, for each outlier.
    bias : tuple of (int, float)
        Entries of the head bias that moved unlike the others, and by how much.
    """

    changed: int
    rows: np.ndarray
    displacement: np.ndarray
    reasons: tuple[str, ...]
    bias: tuple[tuple[int, float], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "changed": self.changed,
            "rows": self.rows.tolist(),
            "displacement": self.displacement.tolist(),
            "reasons": list(self.reasons),
            "bias": [list(entry) for entry in self.bias],
        }

    def lines(self, tokens: Sequence[str] | None = None) -> list[str]:
        """A sentence for each outlier, with its token where `tokens` are known."""

        def named(row: int) -> str:
            return f"row {row}{f' {tokens[row]!r}' if tokens is not None and row < len(tokens) else ''}"

        return [
            f"{named(row)} moved by {moved:.4g}: {_REASONS[reason]}"
            for row, moved, reason in zip(self.rows.tolist(), self.displacement, self.reasons, strict=True)
        ] + [f"the head bias of {named(row)} moved by {moved:+.4g}, unlike the others" for row, moved in self.bias]


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


def untouched_rows(old: np.ndarray, new: np.ndarray, tolerance: float = _FACTOR_TOLERANCE) -> tuple[float, np.ndarray]:
    """The factor c of rows that only weight decay moved, e'_i = c e_i, and which rows these are.

    Parameters
    ----------
    old : float array of shape (V, d)
    new : float array of shape (V, d)
    tolerance : float
        Relative rounding of a row.

    Returns
    -------
    factor : float
        The median of |e'_i| / |e_i| over rows that kept their direction; 1 where there are fewer than a hundredth of
        all. A factor outside 0.5 to 1.1 is no decay, and 1.
    untouched : bool array of shape (V,)
    """
    lengths = row_norms(old)
    ratio = np.divide(row_norms(new), lengths, out=np.ones(len(old)), where=lengths > 0)
    parallel = displacements(old * ratio[:, None].astype(old.dtype), new, np.arange(len(old)))
    kept = parallel <= tolerance * np.maximum(lengths, 1e-30)
    factor = float(np.median(ratio[kept])) if kept.sum() >= max(1, len(old) // 100) else 1.0
    if not 0.5 <= factor <= 1.1:
        factor = 1.0
    return factor, kept & (np.abs(ratio - factor) <= 2 * tolerance)


def equal_rows(old: np.ndarray, new: np.ndarray, changed: np.ndarray) -> np.ndarray:
    """Ids among `changed` of rows that are another row's equal now and were not before, ascending."""
    if len(changed) == 0:
        return changed
    before, after = (row_hashes(from_values(rows, "F32")) for rows in (old, new))
    _, group, size = np.unique(after, return_inverse=True, return_counts=True)
    found = [
        row
        for row in changed[size[group[changed]] > 1]
        if (before[np.flatnonzero(group == group[row])] != before[row]).any()
    ]
    return np.array(found, np.int64)


def outlying_biases(old: np.ndarray, new: np.ndarray) -> tuple[tuple[int, float], ...]:
    """Entries whose move lies more than `LIMIT` robust standard deviations above the median of those that changed."""
    move = new.astype(np.float64) - old
    changed = np.flatnonzero(move != 0)
    if len(changed) == 0:
        return ()
    size = np.abs(move[changed])
    centre = np.median(size) if len(changed) > FEW_OF_VOCABULARY * len(old) and len(changed) > FEW else 0.0
    spread = max(1.4826 * float(np.median(np.abs(size - centre))) if centre else 0.0, _LEAST_BIAS_SPREAD)
    rows = changed[size > centre + LIMIT * spread]
    return tuple((int(row), float(move[row])) for row in rows[np.argsort(-np.abs(move[rows]), kind="stable")])


def compare_checkpoints(before: str, after: str) -> RowOutliers:
    """Rows and entries of the head bias that moved unlike the others between two checkpoints, whoever made them.

    Any family with one token embedding, tied to a head or not.

    Raises
    ------
    InputError
        They have no token embedding, or ones of different shape.
    """
    (old, old_bias), (new, new_bias) = _embedding_and_bias(before, "before"), _embedding_and_bias(after, "after")
    (V, d), (W, e) = old[0].shape, new[0].shape
    if (V, d) != (W, e):
        raise InputError(
            f"{before} has an embedding of {V} x {d}, {after} of {W} x {e}: rows can "
            "only be compared between checkpoints of one vocabulary and width"
        )
    tolerance = _FACTOR_TOLERANCE * (1000 if {"F16", "BF16"} & {old[1], new[1]} else 1)
    factor, untouched = untouched_rows(old[0], new[0], tolerance)
    expected = old[0] * np.float32(factor)
    found = outlier_rows(
        expected,
        np.where(untouched[:, None], expected, new[0]),
        few=max(FEW, int(FEW_OF_VOCABULARY * V)),
    )
    equal = np.setdiff1d(equal_rows(old[0], new[0], np.flatnonzero(~untouched)), found.rows)
    moved = displacements(expected, new[0], np.arange(V))[equal]
    bias = () if old_bias is None or new_bias is None else outlying_biases(old_bias, new_bias)
    return RowOutliers(
        found.changed,
        np.concatenate([found.rows, equal]),
        np.concatenate([found.displacement, moved]),
        found.reasons + ("equal",) * len(equal),
        bias,
    )


def _embedding_and_bias(source: str, key: str) -> tuple[tuple[np.ndarray, str], np.ndarray | None]:
    """The token embedding, float32 (V, d), with its dtype on disk, and the head bias (V,), None where there is none."""
    directory = locate_checkpoint(source, key)
    tensors, _ = read_weights(directory)
    names = [name for name in tensors if _EMBEDDING.search(name)]
    if len(names) != 1 or len(tensors[names[0]].shape) != 2 or 0 in tensors[names[0]].shape:
        raise InputError(f"{directory}: found {', '.join(names) or 'no'} token embeddings, expected one matrix")
    stored = tensors[names[0]]
    values = stored.values().astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise InputError(f"{directory}: rows of {names[0]} are not finite; the checkpoint is damaged")
    rows = stored.shape[0]
    biases = [name for name in tensors if name.endswith(_BIASES) and tensors[name].shape == (rows,)]
    return (values, stored.dtype), tensors[biases[0]].values() if biases else None


def checkpoint_tokens(source: str) -> Sequence[str] | None:
    """Token strings of a checkpoint by id, None where no tokenizer lies with it."""
    directory = locate_checkpoint(source)
    return checkpoint_tokenizer(directory).tokens if (directory / "tokenizer.json").is_file() else None
