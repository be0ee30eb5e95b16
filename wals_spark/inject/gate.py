r"""The gate of an injection: the held-out R^2 of the alignment against two controls.

::

    R^2 = 1 - sum_i w_i |e_i - p_i|^2 / sum_i w_i |e_i - mean|^2      p_i, mean: fitted without the fold of anchor i
    gain = R^2(factors) - max(R^2(permuted), R^2(frequency))

- *permuted*: the factors shuffled among tokens of similar frequency, as good as any vectors with the right
  frequency profile.
- *frequency*: regression on powers of the log count alone.

The gate passes where the lower end of the gain's 95 % bootstrap interval over tokens exceeds a margin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
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
    """The decision and its figures.

    Attributes
    ----------
    passed : bool
    reason : str
        One sentence with the figures.
    r2 : dict of str to float
        Held-out R^2 of ``factors``, ``permuted`` and ``frequency``.
    gain : float
        R^2 of the factors minus that of the better control.
    low, high : float
        Its 95 % interval.
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
    """An alignment, its cross-validation and the gate's decision.

    Attributes
    ----------
    alignment : align.Alignment
        Fitted on all anchors.
    anchors : int64 array of shape (n,)
    held_out_error : float64 array of shape (n,)
        |e - p|^2 of every anchor, p predicted without its fold.
    cv : align.CrossValidation
    gate : GateResult
    """

    alignment: align.Alignment
    anchors: np.ndarray
    held_out_error: np.ndarray
    cv: align.CrossValidation
    gate: GateResult


@dataclass(frozen=True)
class _Anchors:
    """Rows of the embedding to align with: `ids` (n,), and of each its count, weight and fold."""

    E: np.ndarray
    ids: np.ndarray
    counts: np.ndarray
    weight: np.ndarray
    fold: np.ndarray
    folds: int

    def sums(self, U: np.ndarray, u_rows: np.ndarray) -> list[align.Sums]:
        """The sums of every fold, pair i being ``u_rows[i]`` of U and ``ids[i]`` of E."""
        return align.sums_by_fold(U, self.E, self.weight, self.fold, self.folds, u_rows=u_rows, e_rows=self.ids)


@dataclass(frozen=True)
class _HeldOut:
    """Of each anchor, float64 (n,): |e - p|^2, |e - mean|^2, cos(e - mu_e, p - mu_e); p and mean without its fold."""

    error: np.ndarray
    total: np.ndarray
    cosine: np.ndarray


@dataclass(frozen=True)
class _ArmFit:
    """The map of an arm, its cross-validation, the maps without each fold, and its held-out errors."""

    alignment: align.Alignment
    cv: align.CrossValidation
    maps: list[align.Alignment]
    held_out: _HeldOut


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
    U : float32 array of shape (V, k)
    E : float32 array of shape (V, d)
    counts : int64 array of shape (V,)
    anchors : int64 array of shape (n,)
        Ids of the rows that may fit the map.
    folds : int
        Of the cross-validation.
    half : float
        The count at which an anchor weighs one half (`align.anchor_weights`).
    seed : int
        Of folds, permutation and bootstrap.
    margin : float
        The gain in R^2 that must be exceeded.
    method : {"ridge", "procrustes"}
        The map; the frequency control is always ridge.
    whiten : bool
        Equalise the factors' directions first.
    sums : callable, optional
        Accumulates the sums of the factors' two arms; none = here, chunk by chunk.

    Returns
    -------
    AlignmentFit

    Raises
    ------
    InputError
        Fewer than 50 anchors, or fewer than four per fold.
    """
    _check_number(len(anchors), folds)
    c = counts[anchors]
    known = _Anchors(E, anchors, c, align.anchor_weights(c, half), align.stratified_folds(c, folds, seed), folds)
    strata = align.deciles(c)
    u_rows = {"factors": anchors, "permuted": anchors[align.permute_within(strata, seed)]}
    arms = _fit_arms(U, u_rows, known, method, whiten, sums)
    queries = csls.stratified_queries(strata, seed)
    hits = {name: _csls_hits(U, rows, known, arms[name].maps, queries) for name, rows in u_rows.items()}
    own, errors = arms["factors"], {name: arm.held_out.error for name, arm in arms.items()}
    table = _by_decile(c, strata, errors, own.held_out, queries, hits)
    gate = replace(_decide(errors, own.held_out.total, known.weight, margin, seed), deciles=table)
    return AlignmentFit(own.alignment, anchors, own.held_out.error, own.cv, gate)


def _fit_arms(
    U: np.ndarray,
    u_rows: dict[str, np.ndarray],
    anchors: _Anchors,
    method: str,
    whiten: bool,
    sums: FoldSums | None,
) -> dict[str, _ArmFit]:
    """Fit the factors and both controls; `u_rows` are the factors' rows that each anchor takes, own and permuted."""
    per_fold = {
        name: anchors.sums(U, rows)
        if sums is None
        else sums(rows, anchors.ids, anchors.weight, anchors.fold, anchors.folds)
        for name, rows in u_rows.items()
    }
    T = align.whitening(align.sum_of_folds(per_fold["factors"])) if whiten else None
    arms = {name: _fit_arm(U, rows, anchors, per_fold[name], method, T) for name, rows in u_rows.items()}
    features, every = align.frequency_features(anchors.counts).astype(np.float32), np.arange(len(anchors.ids))
    arms["frequency"] = _fit_arm(features, every, anchors, anchors.sums(features, every), "ridge", None)
    return arms


def _check_number(anchors: int, folds: int) -> None:
    least = max(_MIN_ANCHORS, 4 * folds)
    if anchors < least:
        raise InputError(
            f"{anchors} tokens are frequent enough to align on, expected at least {least}: "
            "use a larger corpus or lower inject.anchor_min_count"
        )


def _fit_arm(
    U: np.ndarray,
    u_rows: np.ndarray,
    anchors: _Anchors,
    per_fold: list[align.Sums],
    method: str,
    T: np.ndarray | None,
) -> _ArmFit:
    """Fit the map of U T with lambda_0 by cross-validation, and predict every anchor without its fold."""
    if T is not None:
        per_fold = [align.transformed(sums, T) for sums in per_fold]
    cv = align.cross_validate(per_fold) if method == "ridge" else align.cross_validate_procrustes(per_fold)
    maps = align.held_out_maps(per_fold, cv.best, method)
    whole = align.fit_map(align.sum_of_folds(per_fold), method, cv.best)
    if T is not None:
        maps, whole = [align.unwhitened(each, T) for each in maps], align.unwhitened(whole, T)
    return _ArmFit(whole, cv, maps, _held_out(U, u_rows, anchors, maps, whole.mu_e))


def _csls_hits(
    U: np.ndarray, u_rows: np.ndarray, anchors: _Anchors, maps: Sequence[align.Alignment], queries: np.ndarray
) -> np.ndarray:
    """Whether each query's held-out prediction finds its own row, bool (q,)."""
    predicted = align.held_out_predictions(maps, U[u_rows[queries]], anchors.fold[queries])
    means = np.stack([each.mu_e for each in maps]).astype(np.float32)
    return csls.csls_hits(predicted, anchors.E, queries, means, anchors.fold, anchors.ids)


def _held_out(
    U: np.ndarray, u_rows: np.ndarray, anchors: _Anchors, maps: Sequence[align.Alignment], centre: np.ndarray
) -> _HeldOut:
    """Predict every anchor by the map of the other folds, a few thousand at a time."""
    fold = anchors.fold
    found = _HeldOut(*(np.empty(len(fold)) for _ in range(3)))
    means = np.stack([each.mu_e for each in maps])
    for part, x, y in align.pairs(U, anchors.E, len(fold), u_rows, anchors.ids):
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
    """Compare the R^2 of the factors with the better control's, by a Poisson bootstrap over anchors."""
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
    counts: np.ndarray,
    strata: np.ndarray,
    errors: dict[str, np.ndarray],
    held_out: _HeldOut,
    queries: np.ndarray,
    hits: dict[str, np.ndarray],
) -> list[dict[str, Any]]:
    """Counts, R^2 and CSLS precision of each arm and the mean cosine in every decile of the count."""
    table = []
    for stratum in np.unique(strata):
        members, asked = strata == stratum, strata[queries] == stratum
        scale = max(float(held_out.total[members].sum()), 1e-300)
        table.append(
            {
                "decile": int(stratum),
                "tokens": int(members.sum()),
                "min_count": int(counts[members].min()),
                "max_count": int(counts[members].max()),
                **{f"r2_{name}": float(1 - error[members].sum() / scale) for name, error in errors.items()},
                "cosine": float(held_out.cosine[members].mean()),
                **{f"csls_{name}": float(hit[asked].mean()) for name, hit in hits.items()},
            }
        )
    return table
