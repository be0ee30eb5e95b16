"""Is the alignment worth injecting? Held-out anchors against two controls.

- *permuted*: the factors shuffled among tokens of similar frequency. What is left is what any vectors with
  the right frequency profile would give.
- *frequency*: regression on powers of the log count alone.

The gate opens when the held-out R^2 of the factors exceeds that of the better control by a margin, at
the lower end of a bootstrap interval over tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from wals_spark.errors import InputError
from wals_spark.inject import align, csls

MARGIN = 0.01
_RESAMPLES = 500
_MIN_ANCHORS = 50


FoldSums = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int], "list[align.Sums]"]
"""(u_rows, e_rows, weight, fold, folds) of pairs of rows -> the sums of every fold, as `align.sums_by_fold`."""


@dataclass(frozen=True)
class GateResult:
    """The decision and what it rests on.

    Attributes
    ----------
    passed : bool
    reason : str
        One sentence with the figures.
    r2 : dict
        Held-out R^2 of ``factors``, ``permuted`` and ``frequency``.
    gain, low, high : float
        R^2 of the factors minus that of the better control, with its 95 % interval.
    deciles : list of dict
        By frequency decile of the anchors: counts, tokens, R^2 and CSLS precision at 1 of each arm, mean cosine.
    """

    passed: bool
    reason: str
    r2: dict[str, float]
    gain: float
    low: float
    high: float
    deciles: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class AlignmentFit:
    """An alignment with all that cross-validation said about it.

    Attributes
    ----------
    alignment : align.Alignment
        Fitted on all anchors.
    anchors : int64 array (n,)
    held_out_error : float64 array (n,)
        |e - p|^2 of every anchor, p predicted without its fold.
    cv : align.CrossValidation
    gate : GateResult
    """

    alignment: align.Alignment
    anchors: np.ndarray
    held_out_error: np.ndarray
    cv: align.CrossValidation
    gate: GateResult


def fit_and_gate(
    U: np.ndarray,
    E: np.ndarray,
    counts: np.ndarray,
    anchors: np.ndarray,
    *,
    folds: int,
    half: float,
    seed: int,
    margin: float = MARGIN,
    method: str = "ridge",
    whiten: bool = False,
    sums: FoldSums | None = None,
) -> AlignmentFit:
    """Align the factors with the embedding, and both controls with it, on the same folds.

    Parameters
    ----------
    U : float32 (V, k)
    E : float32 (V, d)
    counts : int64 (V,)
    anchors : int64, ids of the rows that may fit the map
    folds, half, seed
        Of the cross-validation, of `align.anchor_weights`, of folds, permutation and bootstrap.
    margin : the gain in R^2 that must be exceeded
    method : {"ridge", "procrustes"}
        The map; the frequency control is always ridge.
    whiten : equalise the factors' directions first
    sums : optional
        Accumulates the sums of the factors' two arms; none = here, chunk by chunk.

    Raises
    ------
    InputError
        Fewer than 50 anchors, or fewer than four per fold.
    """
    if len(anchors) < max(_MIN_ANCHORS, 4 * folds):
        raise InputError(
            f"{len(anchors)} tokens are frequent enough to align on, expected at least {max(_MIN_ANCHORS, 4 * folds)}: "
            "use a larger corpus or lower inject.anchor_min_count"
        )
    c = counts[anchors]
    weight = align.anchor_weights(c, half)
    fold = align.stratified_folds(c, folds, seed)
    strata = align.deciles(c)
    shuffled = anchors[align.permute_within(strata, seed)]
    arms = {
        "factors": (U, anchors),
        "permuted": (U, shuffled),
        "frequency": (align.frequency_features(c).astype(np.float32), np.arange(len(c))),
    }
    T = None
    errors: dict[str, np.ndarray] = {}
    hits: dict[str, np.ndarray] = {}
    queries = csls.stratified_queries(strata, seed)
    own: tuple[align.Alignment, align.CrossValidation, _HeldOut] | None = None
    for name, (X, rows) in arms.items():
        if sums is not None and name != "frequency":
            per_fold = sums(rows, anchors, weight, fold, folds)
        else:
            per_fold = align.sums_by_fold(X, E, weight, fold, folds, u_rows=rows, e_rows=anchors)
        if whiten and name != "frequency":
            T = align.whitening(align.sum_of_folds(per_fold)) if T is None else T
            per_fold = [align.transformed(sums, T) for sums in per_fold]
        used = "ridge" if name == "frequency" else method
        cv = align.cross_validate(per_fold) if used == "ridge" else align.cross_validate_procrustes(per_fold)
        maps = align.held_out_maps(per_fold, cv.best, used)
        whole = align.fit_map(align.sum_of_folds(per_fold), used, cv.best)
        if T is not None and name != "frequency":
            maps, whole = [align.unwhitened(each, T) for each in maps], align.unwhitened(whole, T)
        held_out = _held_out(X, rows, E, anchors, fold, maps, whole.mu_e)
        errors[name] = held_out.error
        if name != "frequency":
            predicted = align.held_out_predictions(maps, X[rows[queries]], fold[queries])
            means = np.stack([each.mu_e for each in maps]).astype(np.float32)
            hits[name] = csls.csls_hits(predicted, E, queries, means, fold, anchors)
        if name == "factors":
            own = whole, cv, held_out
    assert own is not None
    alignment, cv, held_out = own
    gate = _decide(errors, held_out.total, weight, margin, seed)
    table = _by_decile(c, strata, errors, held_out.total, held_out.cosine)
    for row in table:
        mine = strata[queries] == row["decile"]
        row.update({f"csls_{name}": float(hit[mine].mean()) for name, hit in hits.items()})
    return AlignmentFit(alignment, anchors, held_out.error, cv, GateResult(**{**gate.__dict__, "deciles": table}))


@dataclass(frozen=True)
class _HeldOut:
    """Per anchor, float64 (n,): |e - p|^2, |e - mean|^2, cos(e - mu_e, p - mu_e); p and mean without its fold."""

    error: np.ndarray
    total: np.ndarray
    cosine: np.ndarray


def _held_out(
    X: np.ndarray,
    x_rows: np.ndarray,
    E: np.ndarray,
    e_rows: np.ndarray,
    fold: np.ndarray,
    maps: Sequence[align.Alignment],
    centre: np.ndarray,
) -> _HeldOut:
    """Predict every anchor by the map of the other folds, a few thousand at a time."""
    found = _HeldOut(*(np.empty(len(fold)) for _ in range(3)))
    means = np.stack([each.mu_e for each in maps])
    for part, x, y in align.pairs(X, E, len(fold), x_rows, e_rows):
        predicted = align.held_out_predictions(maps, x, fold[part]).astype(np.float64)
        found.error[part] = ((y - predicted) ** 2).sum(axis=1)
        found.total[part] = ((y - means[fold[part]]) ** 2).sum(axis=1)
        a, b = y - centre, predicted - centre
        scale = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        found.cosine[part] = np.einsum("ij,ij->i", a, b) / np.maximum(scale, 1e-12)
    return found


def _decide(
    errors: dict[str, np.ndarray], total: np.ndarray, weight: np.ndarray, margin: float, seed: int
) -> GateResult:
    if float(weight @ total) <= 0:
        return GateResult(
            False, "all anchor rows of the embedding are equal: there is nothing to align with", {}, 0.0, 0.0, 0.0
        )
    r2 = {name: float(1 - (weight @ error) / (weight @ total)) for name, error in errors.items()}
    rival = max((name for name in errors if name != "factors"), key=lambda name: r2[name])
    generator = np.random.default_rng([seed, 13])
    difference = weight * (errors[rival] - errors["factors"])
    scaled = weight * total
    draws = np.empty(_RESAMPLES)
    for index in range(_RESAMPLES):
        times = generator.poisson(1.0, len(weight)).astype(np.float64)
        draws[index] = (times @ difference) / max(float(times @ scaled), 1e-300)
    gain = r2["factors"] - r2[rival]
    low, high = (float(value) for value in np.quantile(draws, [0.025, 0.975]))
    passed = low > margin
    reason = (
        f"held-out R^2 {r2['factors']:.4f} of the factors, {r2['permuted']:.4f} permuted, {r2['frequency']:.4f} of "
        f"frequency alone: gain {gain:.4f} [{low:.4f}, {high:.4f}] over {rival}, "
        f"{'above' if passed else 'not above'} the margin {margin}"
    )
    return GateResult(passed, reason, r2, float(gain), low, high)


def _by_decile(
    counts: np.ndarray, strata: np.ndarray, errors: dict[str, np.ndarray], total: np.ndarray, cosine: np.ndarray
) -> list[dict[str, Any]]:
    table = []
    for stratum in np.unique(strata):
        members = strata == stratum
        scale = max(float(total[members].sum()), 1e-300)
        table.append(
            {
                "decile": int(stratum),
                "tokens": int(members.sum()),
                "min_count": int(counts[members].min()),
                "max_count": int(counts[members].max()),
                **{f"r2_{name}": float(1 - error[members].sum() / scale) for name, error in errors.items()},
                "cosine": float(cosine[members].mean()),
            }
        )
    return table
