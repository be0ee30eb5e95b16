r"""From the factors' space to the model's: frequency-weighted, centred ridge regression.

With anchors A, weights w_i, X = U - mu_u, Y = E - mu_e, D = diag(w)::

    W      = (X^T D X + lambda I)^-1 X^T D Y ,   lambda = lambda_0 tr(X^T D X) / k      (k x d)
    P_i    = mu_e + (u_i - mu_u) W

lambda_0 comes from K-fold cross-validation over the anchors, folds stratified by frequency. All of it
needs only `Sums`, which add: one pass over the rows per fold, wherever they are. Everything here is float64
except the rows themselves.

References
----------
P. H. Schönemann, "A generalized solution of the orthogonal Procrustes problem", Psychometrika 31, 1966 (`procrustes`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from wals_spark.errors import InputError

LAMBDA_GRID = tuple(10.0**power for power in np.arange(-6.0, 2.01, 0.5))
_CHUNK = 4096


@dataclass(frozen=True)
class Sums:
    """The weighted moments of pairs (x, y).

    Attributes
    ----------
    count : int
    weight : float
        sum w
    x : float64 array of shape (k,)
        sum w x
    y : float64 array of shape (d,)
        sum w y
    xx : float64 array of shape (k, k)
        sum w x x^T
    xy : float64 array of shape (k, d)
        sum w x y^T
    yy : float
        sum w |y|^2
    """

    count: int
    weight: float
    x: np.ndarray
    y: np.ndarray
    xx: np.ndarray
    xy: np.ndarray
    yy: float

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.count + other.count,
            self.weight + other.weight,
            self.x + other.x,
            self.y + other.y,
            self.xx + other.xx,
            self.xy + other.xy,
            self.yy + other.yy,
        )

    def __sub__(self, other: Sums) -> Sums:
        return Sums(
            self.count - other.count,
            self.weight - other.weight,
            self.x - other.x,
            self.y - other.y,
            self.xx - other.xx,
            self.xy - other.xy,
            self.yy - other.yy,
        )

    def centred(self) -> Centred:
        """Moments about the weighted means."""
        mu_u, mu_e = self.x / self.weight, self.y / self.weight
        xx = self.xx - np.outer(mu_u, self.x)
        xy = self.xy - np.outer(mu_u, self.y)
        return Centred(mu_u, mu_e, (xx + xx.T) / 2, xy, float(self.yy - mu_e @ self.y))


@dataclass(frozen=True)
class Centred:
    """`Sums` about the means: X^T D X (k, k), X^T D Y (k, d), tr(Y^T D Y)."""

    mu_u: np.ndarray
    mu_e: np.ndarray
    xx: np.ndarray
    xy: np.ndarray
    yy: float


def accumulate(U: np.ndarray, E: np.ndarray, weight: np.ndarray) -> Sums:
    """`Sums` over rows.

    Parameters
    ----------
    U : float array of shape (n, k)
    E : float array of shape (n, d)
    weight : float array of shape (n,)
        Not negative.

    Returns
    -------
    Sums
    """
    k, d = U.shape[1], E.shape[1]
    x, y, xx, xy, yy = np.zeros(k), np.zeros(d), np.zeros((k, k)), np.zeros((k, d)), 0.0
    for begin in range(0, len(U), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        u, e, w = U[part].astype(np.float64), E[part].astype(np.float64), weight[part].astype(np.float64)
        wu = u * w[:, None]
        x += wu.sum(axis=0)
        y += w @ e
        xx += wu.T @ u
        xy += wu.T @ e
        yy += float(w @ np.einsum("ij,ij->i", e, e))
    return Sums(len(U), float(weight.sum(dtype=np.float64)), x, y, xx, xy, yy)


@dataclass(frozen=True)
class Alignment:
    """An affine map from factors to embedding rows.

    Attributes
    ----------
    mu_u : float64 array of shape (k,)
    mu_e : float64 array of shape (d,)
    W : float64 array of shape (k, d)
    regularization : float
        lambda_0, relative to the mean eigenvalue of X^T D X.
    """

    mu_u: np.ndarray
    mu_e: np.ndarray
    W: np.ndarray
    regularization: float

    def predict(self, U: np.ndarray) -> np.ndarray:
        """P = mu_e + (U - mu_u) W, float32 (n, d)."""
        offset = (self.mu_e - self.mu_u @ self.W).astype(np.float32)
        predicted = U.astype(np.float32, copy=False) @ self.W.astype(np.float32)
        predicted += offset
        return predicted


def _spectrum(sums: Sums) -> tuple[Centred, np.ndarray, np.ndarray]:
    """Moments about the means, and the eigenvalues and eigenvectors of X^T D X.

    Directions in which the factors do not vary beyond rounding get the eigenvalue infinity, so that no
    map uses them whatever lambda is.
    """
    centred = sums.centred()
    eigenvalues, Q = np.linalg.eigh(centred.xx)
    floor = len(eigenvalues) * np.finfo(np.float64).eps * float(np.trace(sums.xx))
    return centred, np.where(eigenvalues > floor, eigenvalues, np.inf), Q


def _mean_eigenvalue(eigenvalues: np.ndarray) -> float:
    """tr(X^T D X) / k over the directions that vary."""
    return float(eigenvalues[np.isfinite(eigenvalues)].sum()) / len(eigenvalues)


def ridge(sums: Sums, regularization: float) -> Alignment:
    """W = Q (S + lambda I)^-1 Q^T X^T D Y in the eigenbasis Q S Q^T of X^T D X, lambda = lambda_0 tr(X^T D X) / k."""
    centred, eigenvalues, Q = _spectrum(sums)
    shrink = 1 / (eigenvalues + regularization * _mean_eigenvalue(eigenvalues))
    W = (Q * shrink) @ (Q.T @ centred.xy)
    return Alignment(centred.mu_u, centred.mu_e, W, regularization)


def procrustes(sums: Sums) -> Alignment:
    """Rotation and scale only: X^T D Y = A S B^T, W = s A B^T, s = tr(S) / tr(X^T D X).

    It keeps the factors' geometry (cosines within their span) and fits worse than ridge; for few anchors. With
    k < d the map is semi-orthogonal.

    References
    ----------
    P. H. Schönemann, "A generalized solution of the orthogonal Procrustes problem", Psychometrika 31, 1966.
    """
    centred = sums.centred()
    A, S, B = np.linalg.svd(centred.xy, full_matrices=False)
    scale = float(S.sum()) / max(float(np.trace(centred.xx)), np.finfo(np.float64).tiny)
    return Alignment(centred.mu_u, centred.mu_e, scale * (A @ B), 0.0)


def whitening(sums: Sums) -> np.ndarray:
    """T = (X^T D X / sum w)^(-1/2), float64 (k, k): after U <- U T no direction of the factors counts more."""
    _, eigenvalues, Q = _spectrum(sums)
    return (Q * np.sqrt(sums.weight / eigenvalues)) @ Q.T


def unwhitened(alignment: Alignment, T: np.ndarray) -> Alignment:
    """The map of u that equals `alignment` applied to u T."""
    return replace(alignment, mu_u=alignment.mu_u @ np.linalg.pinv(T), W=T @ alignment.W)


def transformed(sums: Sums, T: np.ndarray) -> Sums:
    """The sums of (x T, y)."""
    return Sums(sums.count, sums.weight, sums.x @ T, sums.y, T.T @ sums.xx @ T, T.T @ sums.xy, sums.yy)


def held_out_error(alignment: Alignment, part: Sums) -> float:
    """Sum of w |y - p|^2 over rows, computed from their sums alone."""
    offset = alignment.mu_e - alignment.mu_u @ alignment.W  # p = offset + x W
    W = alignment.W
    cross = float(np.einsum("ij,ij->", part.xy, W)) + float(part.y @ offset)
    square = float(np.einsum("ij,ij->", part.xx @ W, W)) + 2 * float((part.x @ W) @ offset)
    return part.yy - 2 * cross + square + part.weight * float(offset @ offset)


def fit_map(sums: Sums, method: str, regularization: float) -> Alignment:
    """`ridge`, or `procrustes`, which has no regularization."""
    return ridge(sums, regularization) if method == "ridge" else procrustes(sums)


def anchor_weights(counts: np.ndarray, half: float) -> np.ndarray:
    """w_i = c_i / (c_i + half): it rises with the count and saturates, float64 (n,)."""
    counts = counts.astype(np.float64)
    return counts / (counts + half)


def stratified_folds(counts: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """A fold number per row, int64 (n,); rows of similar count are spread evenly over the folds."""
    generator = np.random.default_rng([seed, 11])
    order = np.lexsort((generator.random(len(counts)), counts))
    assigned = np.empty(len(counts), np.int64)
    for begin in range(0, len(order), folds):
        group = order[begin : begin + folds]
        assigned[group] = generator.permutation(folds)[: len(group)]
    return assigned


def deciles(counts: np.ndarray) -> np.ndarray:
    """Decile of the count per row, 0 (rarest) to 9, int64 (n,); equal counts are in one decile."""
    edges = np.quantile(counts, np.arange(1, 10) / 10)
    return np.searchsorted(edges, counts, side="left")


def permute_within(strata: np.ndarray, seed: int) -> np.ndarray:
    """A permutation of the rows that keeps each in its stratum, int64 (n,)."""
    generator = np.random.default_rng([seed, 12])
    permutation = np.arange(len(strata))
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        permutation[members] = generator.permutation(members)
    return permutation


def frequency_features(counts: np.ndarray) -> np.ndarray:
    """Powers 1 to 3 of the standardised log count, the predictors of the frequency control, float64 (n, 3)."""
    logs = np.log1p(counts.astype(np.float64))
    scaled = (logs - logs.mean()) / max(float(logs.std()), 1e-12)
    return np.stack([scaled, scaled**2, scaled**3], axis=1)


@dataclass(frozen=True)
class CrossValidation:
    """Errors of held-out anchors by lambda_0.

    Attributes
    ----------
    grid : tuple of float
        The lambda_0 tried.
    error : float64 array of shape (len(grid),)
        Held-out sum of w |e - p|^2.
    total : float
        Held-out sum of w |e - mu_e|^2, mu_e from the other folds.
    best : float
        The lambda_0 of the smallest error.
    """

    grid: tuple[float, ...]
    error: np.ndarray
    total: float
    best: float

    @property
    def r2(self) -> float:
        """1 - error / total at the best lambda_0."""
        return float(1 - self.error.min() / self.total) if self.total > 0 else 0.0


def cross_validate_procrustes(per_fold: Sequence[Sums]) -> CrossValidation:
    """Errors of held-out anchors under `procrustes`, whose only lambda_0 is 0."""
    everything = sum_of_folds(per_fold)
    error, total = 0.0, 0.0
    for part in per_fold:
        train = everything - part
        error += held_out_error(procrustes(train), part)
        mean = train.y / train.weight
        total += part.yy - 2 * float(mean @ part.y) + part.weight * float(mean @ mean)
    return CrossValidation((0.0,), np.array([error]), total, 0.0)


def sum_of_folds(per_fold: Sequence[Sums]) -> Sums:
    """The sum of all folds."""
    everything = per_fold[0]
    for part in per_fold[1:]:
        everything = everything + part
    return everything


def cross_validate(per_fold: Sequence[Sums], grid: Sequence[float] = LAMBDA_GRID) -> CrossValidation:
    """Choose lambda_0 by K-fold cross-validation, from the sums of the folds alone.

    With S the sums of a fold about the *training* means, its error under W is
    tr(Y^T D Y) - 2 tr(W^T X^T D Y) + tr(W^T X^T D X W); in the eigenbasis Q of the training X^T D X every
    lambda_0 costs one pass over a k x k matrix.

    Raises
    ------
    InputError
        All folds but one have no weight.
    """
    everything = sum_of_folds(per_fold)
    error, total = np.zeros(len(grid)), 0.0
    for part in per_fold:
        train = everything - part
        if train.weight <= 0:
            raise InputError("the anchors of all folds but one have no weight: too few tokens to align on")
        centred, eigenvalues, Q = _spectrum(train)
        mu_u, mu_e = centred.mu_u, centred.mu_e
        xx = part.xx - np.outer(mu_u, part.x) - np.outer(part.x, mu_u) + part.weight * np.outer(mu_u, mu_u)
        xy = part.xy - np.outer(mu_u, part.y) - np.outer(part.x, mu_e) + part.weight * np.outer(mu_u, mu_e)
        yy = part.yy - 2 * float(mu_e @ part.y) + part.weight * float(mu_e @ mu_e)
        target = Q.T @ centred.xy  # (k, d)
        held_xy = Q.T @ xy
        held_xx = Q.T @ xx @ Q
        mean = _mean_eigenvalue(eigenvalues)
        gram = target @ target.T  # (k, k)
        cross = np.einsum("ij,ij->i", target, held_xy)
        for index, value in enumerate(grid):
            shrink = 1 / (eigenvalues + value * mean)
            fitted = float(np.einsum("ij,ij->", held_xx * np.outer(shrink, shrink), gram))
            error[index] += yy - 2 * float(shrink @ cross) + fitted
        total += yy
    return CrossValidation(tuple(grid), error, total, float(grid[int(error.argmin())]))


def held_out_maps(per_fold: Sequence[Sums], regularization: float, method: str = "ridge") -> list[Alignment]:
    """For every fold the map fitted without it."""
    everything = sum_of_folds(per_fold)
    return [fit_map(everything - part, method, regularization) for part in per_fold]


def held_out_predictions(maps: Sequence[Alignment], U: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """P of every row by the map fitted without its fold, float32 (n, d)."""
    predicted = np.empty((len(U), maps[0].W.shape[1]), np.float32)
    for number in np.unique(fold):
        rows = fold == number
        predicted[rows] = maps[number].predict(U[rows])
    return predicted


def sums_by_fold(
    U: np.ndarray,
    E: np.ndarray,
    weight: np.ndarray,
    fold: np.ndarray,
    folds: int,
    *,
    u_rows: np.ndarray | None = None,
    e_rows: np.ndarray | None = None,
) -> list[Sums]:
    """`Sums` of every fold over pairs of rows, in one pass that gathers a few thousand pairs at a time.

    Parameters
    ----------
    U : float array of shape (T, k)
    E : float array of shape (V, d)
    weight : float array of shape (n,)
        Of each pair.
    fold : int array of shape (n,)
        Of each pair.
    folds : int
    u_rows : int64 array of shape (n,), optional
        Row of U in each pair; none = the first n.
    e_rows : int64 array of shape (n,), optional
        Row of E in each pair; none = the first n.

    Returns
    -------
    list of Sums
        One for each fold.
    """
    found: list[Sums | None] = [None] * folds
    for part, u, e in pairs(U, E, len(weight), u_rows, e_rows):
        w, numbers = weight[part], fold[part]
        for number in np.unique(numbers):
            mine = numbers == number
            sums = accumulate(u[mine], e[mine], w[mine])
            before = found[number]
            found[number] = sums if before is None else before + sums
    nothing = accumulate(U[:0], E[:0], weight[:0])
    return [nothing if sums is None else sums for sums in found]


def pairs(
    U: np.ndarray, E: np.ndarray, count: int, u_rows: np.ndarray | None, e_rows: np.ndarray | None
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Chunks of pairs of rows, gathered a few thousand at a time.

    Parameters
    ----------
    U : float array of shape (T, k)
    E : float array of shape (V, d)
    count : int
        Number n of pairs.
    u_rows : int64 array of shape (n,) or None
        Row of U in each pair; None = the first n.
    e_rows : int64 array of shape (n,) or None
        Row of E in each pair; None = the first n.

    Yields
    ------
    part : slice
        The pairs of the chunk.
    u : float array of shape (m, k)
    e : float array of shape (m, d)
    """
    for begin in range(0, count, _CHUNK):
        part = slice(begin, min(begin + _CHUNK, count))
        yield part, U[part if u_rows is None else u_rows[part]], E[part if e_rows is None else e_rows[part]]


def log_share(counts: np.ndarray) -> np.ndarray:
    """Log of (c_i, 1/2 at least) / sum c: frequencies of corpora of different size on one scale."""
    counts = counts.astype(np.float64)
    return np.log(np.maximum(counts, 0.5) / max(float(counts.sum()), 1.0))


def norm_factors(norms: np.ndarray, log_shares: np.ndarray, profile: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """s_i = clip(rho / |P_i - mu|, 1/2, 2), which undoes the shrinkage of ridge: P_i <- mu + s_i (P_i - mu).

    Parameters
    ----------
    norms : float array of shape (n,)
        |P_i - mu|.
    log_shares : float array of shape (n,)
        `log_share` of each token in the corpus that the factors come from.
    profile : tuple of array
        From `norm_profile`: rho by log share, interpolated.

    Returns
    -------
    float32 array of shape (n,)
    """
    at, rho = profile
    wanted = np.interp(log_shares, at, rho)
    return np.clip(wanted / np.maximum(norms, 1e-12), 0.5, 2.0).astype(np.float32)


def norm_profile(norms: np.ndarray, log_shares: np.ndarray, bins: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """rho: the median of the norms |E_j - mu_e| of tokens of similar frequency in pretraining, by their `log_share`.

    Parameters
    ----------
    norms : float array of shape (n,)
    log_shares : float array of shape (n,)
    bins : int
        Groups of equally many tokens.

    Returns
    -------
    at : float64 array of shape (bins,)
        Median log share of each group, ascending.
    rho : float64 array of shape (bins,)
    """
    order = np.argsort(log_shares, kind="stable")
    groups = [group for group in np.array_split(order, min(bins, len(order))) if len(group)]
    at = np.array([np.median(log_shares[group]) for group in groups])
    return at, np.array([np.median(norms[group]) for group in groups])
