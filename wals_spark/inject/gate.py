"""Is the alignment worth injecting? Held-out anchors against two controls.

- *permuted*: the factors shuffled among tokens of similar frequency. What is left is what any vectors with
  the right frequency profile would give.
- *frequency*: regression on powers of the log count alone.

The gate opens when the held-out R^2 of the factors exceeds that of the better control by a margin, at
the lower end of a bootstrap interval over tokens.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from wals_spark.errors import InputError
from wals_spark.inject import align, retrieval

MARGIN = 0.01
_RESAMPLES = 500
_MIN_ANCHORS = 50
_CHUNK = 4096


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
class Fit:
    """An alignment with all that cross-validation said about it.

    Attributes
    ----------
    alignment : align.Alignment
        Fitted on all anchors.
    anchors : int64 array (n,)
    held_out : float32 array (n, d)
        Prediction of every anchor without its fold.
    cv : align.CrossValidation
    gate : GateResult
    """

    alignment: align.Alignment
    anchors: np.ndarray
    held_out: np.ndarray
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
) -> Fit:
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
    c, Y = counts[anchors], E[anchors]
    weight = align.anchor_weights(c, half)
    fold = align.stratified_folds(c, folds, seed)
    strata = align.deciles(c)
    arms = {
        "factors": U[anchors],
        "permuted": U[anchors][align.permute_within(strata, seed)],
        "frequency": align.frequency_features(c).astype(np.float32),
    }
    T = None
    if whiten:
        T = align.whitening(align.accumulate(arms["factors"], Y, weight))
        arms["factors"], arms["permuted"] = ((arms[name] @ T).astype(np.float32) for name in ("factors", "permuted"))
    errors: dict[str, np.ndarray] = {}
    hits: dict[str, np.ndarray] = {}
    queries = retrieval.stratified_queries(strata, seed)
    total = np.zeros(len(anchors))
    found: dict[str, tuple[list[align.Sums], align.CrossValidation, np.ndarray]] = {}
    for name, X in arms.items():
        per_fold = align.sums_by_fold(X, Y, weight, fold, folds)
        used = "ridge" if name == "frequency" else method
        cv = align.cross_validate(per_fold) if used == "ridge" else align.cross_validate_procrustes(per_fold)
        predicted, means = align.held_out_predictions(X, fold, per_fold, cv.best, used)
        errors[name] = _squares(Y, predicted)
        if name != "frequency":
            hits[name] = retrieval.csls_hits(predicted, Y, queries, means, fold)
        if name == "factors":
            total = _distance_to_means(Y, means, fold)
            found[name] = (per_fold, cv, predicted)
    per_fold, cv, predicted = found["factors"]
    alignment = align.solve(align.total_of(per_fold), method, cv.best)
    if T is not None:
        alignment = replace(alignment, mu_u=alignment.mu_u @ np.linalg.pinv(T), W=T @ alignment.W)
    gate = _decide(errors, total, weight, margin, seed)
    table = _by_decile(c, strata, errors, total, _cosines(Y, predicted, alignment.mu_e.astype(np.float32)))
    for row in table:
        mine = strata[queries] == row["decile"]
        row.update({f"csls_{name}": float(hit[mine].mean()) for name, hit in hits.items()})
    return Fit(alignment, anchors, predicted, cv, GateResult(**{**gate.__dict__, "deciles": table}))


def _squares(Y: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """|y - p|^2 per row, float64 (n,), in bounded memory."""
    found = np.empty(len(Y))
    for begin in range(0, len(Y), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        difference = Y[part] - predicted[part]
        found[part] = np.einsum("ij,ij->i", difference, difference, dtype=np.float64)
    return found


def _distance_to_means(Y: np.ndarray, means: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """|y - mean of its fold's map|^2 per row, float64 (n,)."""
    found = np.empty(len(Y))
    for number, mean in enumerate(means):
        found[fold == number] = _squares(Y[fold == number], np.broadcast_to(mean, ((fold == number).sum(), len(mean))))
    return found


def _cosines(a: np.ndarray, b: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Cosine of a - centre and b - centre per row, in bounded memory."""
    found = np.empty(len(a))
    for begin in range(0, len(a), _CHUNK):
        x, y = a[begin : begin + _CHUNK] - centre, b[begin : begin + _CHUNK] - centre
        scale = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        found[begin : begin + _CHUNK] = np.einsum("ij,ij->i", x, y) / np.maximum(scale, 1e-12)
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
