"""Word similarity, analogies and the shape of the cloud, from vectors alone; no Spark.

Similarity: Spearman's rho between cos(u_a, u_b) and the human rating of each pair, over the pairs whose two
words are tokens. Analogies a : b = c : ?, over the questions whose four words are among the `search` most
frequent tokens, the three given ones excluded from the answers:
3CosAdd argmax_d cos(d, b - a + c); 3CosMul argmax_d s(d, b) s(d, c) / (s(d, a) + 0.001) with s = (cos + 1) / 2.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from wals_spark import storage
from wals_spark.errors import InputError
from wals_spark.factors.top_k import unit_rows
from wals_spark.factors.words import WordLookup
from wals_spark.mlm.statistics import Clusters, Interval, percentile_interval

SEARCH = 30_000
_EPSILON = 1e-3
_QUESTIONS_AT_ONCE = 256
_RANKS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class SimilarityResult:
    """The result on one file of rated pairs.

    Attributes
    ----------
    name : str
        The file's name without its ending.
    rho : Interval
        Spearman's rho over the covered pairs; the interval resamples pairs.
    pairs, covered : int
    controls : mapping of name -> Interval
        rho of other vectors of the same tokens.
    """

    name: str
    rho: Interval
    pairs: int
    covered: int
    controls: Mapping[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class AnalogyResult:
    """The result on one file of analogy questions.

    Attributes
    ----------
    name : str
    add, mul : Interval
        Accuracy by 3CosAdd and 3CosMul over the covered questions; the interval resamples the pairs (a, b).
    questions, covered : int
    sections : mapping
        Section -> (covered questions, accuracy by 3CosAdd, by 3CosMul).
    controls : mapping of name -> Interval
        Accuracy by 3CosAdd of other vectors of the same tokens.
    """

    name: str
    add: Interval
    mul: Interval
    questions: int
    covered: int
    sections: dict[str, tuple[int, float, float]]
    controls: Mapping[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class VectorGeometry:
    """How the vectors fill the space.

    Attributes
    ----------
    mean_cosine : float
        Of random pairs of distinct tokens; 0 in an isotropic cloud.
    effective_rank : float
        exp of the entropy of the normalised eigenvalues of U^T U; k where every direction is used alike.
    first_share : float
        Share of the largest eigenvalue.
    tokens : int
        Tokens with a count and a vector that is not 0.
    """

    mean_cosine: float
    effective_rank: float
    first_share: float
    tokens: int


def _lines(path: str, what: str) -> list[str]:
    if not storage.exists(path):
        raise InputError(f"{what}: there is no file at {path}")
    try:
        return storage.read_bytes(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error}") from error


def read_pairs(path: str) -> list[tuple[str, str, float]]:
    """Rated pairs, ``word1 word2 score`` by tab, comma, semicolon or spaces; ``#`` lines and one header allowed.

    Raises
    ------
    InputError
        A line that is none, by its number; a file without pairs.
    """
    pairs: list[tuple[str, str, float]] = []
    for number, line in enumerate(_lines(path, "evaluate.similarity"), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        separator = next((mark for mark in ("\t", ";", ",") if text.count(mark) >= 2), None)
        fields = [field.strip() for field in text.split(separator)]
        try:
            first, second, score = fields[0], fields[1], float(fields[2])
            if not np.isfinite(score):
                raise ValueError(f"the score {score}")
        except (IndexError, ValueError):
            if not pairs and number == 1:
                continue  # a header
            raise InputError(f"{path}, line {number}: found {line!r}, expected word1 word2 score") from None
        pairs.append((first, second, score))
    if not pairs:
        raise InputError(f"{path} holds no pairs of words with a score")
    return pairs


def read_questions(path: str) -> list[tuple[str, str, str, str, str]]:
    """Questions as (section, a, b, c, d): four words per line, ``: name`` starts a section.

    Raises
    ------
    InputError
        A line that is none, by its number; a file without questions.
    """
    questions: list[tuple[str, str, str, str, str]] = []
    section = "all"
    for number, line in enumerate(_lines(path, "evaluate.analogies"), 1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        if fields[0].startswith(":"):
            section = " ".join(fields).lstrip(": ") or "all"
        elif len(fields) == 4:
            questions.append((section, fields[0], fields[1], fields[2], fields[3]))
        else:
            raise InputError(f"{path}, line {number}: found {line!r}, expected four words or ': section'")
    if not questions:
        raise InputError(f"{path} holds no analogy questions")
    return questions


def _name(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _ranks(values: np.ndarray) -> np.ndarray:
    """Average ranks along the last axis."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(values, axis=-1))


def _correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's r along the last axis; NaN where one side is constant."""
    x = x - x.mean(axis=-1, keepdims=True)
    y = y - y.mean(axis=-1, keepdims=True)
    norm = np.sqrt((x * x).sum(axis=-1) * (y * y).sum(axis=-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(norm > 0, (x * y).sum(axis=-1) / norm, np.nan)


def spearman(x: np.ndarray, y: np.ndarray, *, resamples: int = 2000, seed: int = 1) -> Interval:
    """Spearman's rho with the percentile interval of a bootstrap over the pairs, ranked anew in every resample.

    Parameters
    ----------
    x, y : float array of shape (n,)
    resamples : int
    seed : int

    Returns
    -------
    Interval
        NaN with fewer than three pairs.
    """
    n = len(x)
    if n < 3:
        return Interval(float("nan"), float("nan"), float("nan"), n, n)
    value = float(_correlation(_ranks(x), _ranks(y)))
    generator = np.random.default_rng([seed, 6])
    draws = np.empty(resamples)
    step = max(1, _RANKS_AT_ONCE // n)
    for start in range(0, resamples, step):
        stop = min(resamples, start + step)
        drawn = generator.integers(n, size=(stop - start, n))
        draws[start:stop] = _correlation(_ranks(x[drawn]), _ranks(y[drawn]))
    low, high = percentile_interval(draws)
    return Interval(value, low, high, n, n)


def pair_cosines(
    lookup: WordLookup, unit: np.ndarray, pairs: Sequence[tuple[str, str, float]]
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and ratings of the covered pairs, two float64 arrays of one length.

    Parameters
    ----------
    unit : float32 array of shape (V, k)
        Rows of norm 1; a row of norm 0 is a token without a vector and covers nothing.
    """
    known = np.asarray(unit.any(axis=1))
    ids, ratings = [], []
    for first, second, rating in pairs:
        a, b = lookup.find(first), lookup.find(second)
        if a is not None and b is not None and known[a] and known[b]:
            ids.append((a, b))
            ratings.append(rating)
    if not ids:
        return np.empty(0), np.empty(0)
    a, b = np.asarray(ids).T
    return np.einsum("ij,ij->i", unit[a].astype(np.float64), unit[b].astype(np.float64)), np.asarray(ratings)


def score_similarity(
    path: str, lookup: WordLookup, unit: np.ndarray, *, resamples: int = 2000, seed: int = 1
) -> SimilarityResult:
    """Spearman's rho between cosines and ratings on one file.

    Parameters
    ----------
    path : str
        Of a file of rated pairs, see `read_pairs`.
    lookup : WordLookup
    unit : float32 array of shape (V, k)
        Rows of norm 1 or 0.
    resamples : int
    seed : int

    Returns
    -------
    SimilarityResult
    """
    pairs = read_pairs(path)
    cosines, ratings = pair_cosines(lookup, unit, pairs)
    return SimilarityResult(
        _name(path), spearman(cosines, ratings, resamples=resamples, seed=seed), len(pairs), len(cosines)
    )


def score_analogies(
    path: str,
    lookup: WordLookup,
    unit: np.ndarray,
    order: np.ndarray,
    *,
    search: int = SEARCH,
    resamples: int = 2000,
    seed: int = 1,
) -> AnalogyResult:
    """Accuracy by 3CosAdd and 3CosMul on one file of analogy questions.

    Parameters
    ----------
    path : str
        Of a file of questions, see `read_questions`.
    lookup : WordLookup
    unit : float32 array of shape (V, k)
        Rows of norm 1 or 0.
    order : int array of shape (V,)
        Token ids, most frequent first; the first `search` with a vector are the possible answers.
    search : int
    resamples : int
    seed : int

    Returns
    -------
    AnalogyResult

    References
    ----------
    Mikolov, Yih and Zweig (2013), Linguistic Regularities in Continuous Space Word Representations, NAACL (3CosAdd).
    Levy and Goldberg (2014), Linguistic Regularities in Sparse and Explicit Word Representations, CoNLL (3CosMul).
    """
    questions = read_questions(path)
    answers = order[unit[order].any(axis=1)][:search]
    place = np.full(len(unit), -1, np.int64)
    place[answers] = np.arange(len(answers))
    rows: list[tuple[int, int, int, int]] = []
    sections: list[str] = []
    for section, *words in questions:
        found = [lookup.find(word) for word in words]
        places = [-1 if number is None else int(place[number]) for number in found]
        if min(places) >= 0 and len(set(places)) == 4:
            rows.append((places[0], places[1], places[2], places[3]))
            sections.append(section)
    if not rows:
        empty = Interval(float("nan"), float("nan"), float("nan"), 0, 0)
        return AnalogyResult(_name(path), empty, empty, len(questions), 0, {})
    quads = np.asarray(rows)
    add, mul = _solve(unit[answers], quads)
    labels = quads[:, 0] * len(answers) + quads[:, 1]
    clusters = Clusters(labels, resamples, seed)
    names = np.asarray(sections)
    by_section = {
        name: (int((names == name).sum()), float(add[names == name].mean()), float(mul[names == name].mean()))
        for name in dict.fromkeys(sections)
    }
    return AnalogyResult(_name(path), clusters.mean(add), clusters.mean(mul), len(questions), len(rows), by_section)


def _solve(unit: np.ndarray, quads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether 3CosAdd and 3CosMul find d, per question, as float64 0 or 1."""
    used, compact = np.unique(quads[:, :3], return_inverse=True)
    compact = compact.reshape(-1, 3)
    cosine = unit[used] @ unit.T  # (used, V)
    add, mul = np.empty(len(quads)), np.empty(len(quads))
    for start in range(0, len(quads), _QUESTIONS_AT_ONCE):
        part, own = quads[start : start + _QUESTIONS_AT_ONCE], compact[start : start + _QUESTIONS_AT_ONCE]
        a, b, c = cosine[own[:, 0]], cosine[own[:, 1]], cosine[own[:, 2]]  # (questions, V)
        number = np.arange(len(part))[:, None]
        scores = b - a
        scores += c
        scores[number, part[:, :3]] = -np.inf
        add[start : start + len(part)] = scores.argmax(axis=1) == part[:, 3]
        b += 1
        c += 1
        a += 1 + 2 * _EPSILON
        b *= c
        b /= a
        b[number, part[:, :3]] = -np.inf
        mul[start : start + len(part)] = b.argmax(axis=1) == part[:, 3]
    return add, mul


def vector_geometry(unit: np.ndarray, matrix: np.ndarray, counts: np.ndarray, seed: int = 1) -> VectorGeometry:
    """Mean cosine of 100,000 random pairs, and the spectrum of the vectors of the tokens with a count.

    Parameters
    ----------
    unit : float32 array of shape (V, k)
        Rows of norm 1 or 0.
    matrix : float array of shape (V, k)
        The same rows with their norms.
    counts : int array of shape (V,)
    seed : int

    Returns
    -------
    VectorGeometry

    References
    ----------
    Roy and Vetterli (2007), The Effective Rank: A Measure of Effective Dimensionality, EUSIPCO
    (of singular values; here of eigenvalues, their squares).
    """
    used = np.nonzero((counts > 0) & unit.any(axis=1))[0]
    if len(used) < 2:
        return VectorGeometry(float("nan"), float("nan"), float("nan"), len(used))
    generator = np.random.default_rng([seed, 7])
    a = used[generator.integers(len(used), size=100_000)]
    b = used[generator.integers(len(used), size=100_000)]
    distinct = a != b
    cosine = np.einsum("ij,ij->i", unit[a[distinct]], unit[b[distinct]], dtype=np.float64)
    vectors = matrix[used].astype(np.float64)
    eigenvalues = np.clip(np.linalg.eigvalsh(vectors.T @ vectors), 0, None)
    share = eigenvalues / eigenvalues.sum()
    positive = share[share > 0]
    entropy = float(-(positive * np.log(positive)).sum())
    return VectorGeometry(float(cosine.mean()), float(np.exp(entropy)), float(share.max()), len(used))


def score_vectors(
    tokens: Sequence[str],
    matrix: np.ndarray,
    files: Sequence[str],
    *,
    counts: np.ndarray | None = None,
    search: int = SEARCH,
    resamples: int = 2000,
    seed: int = 1,
) -> list[SimilarityResult | AnalogyResult]:
    """Score vectors on files of rated pairs or of analogy questions, which `is_analogy_file` distinguishes.

    Parameters
    ----------
    tokens : sequence of str
        Token strings by row.
    matrix : float array of shape (V, k)
    files : sequence of str
        Paths.
    counts : int array of shape (V,) or None
        Frequencies, to know the `search` most frequent tokens; without them the rows are taken to be in
        that order already.
    search : int
        Tokens that analogy answers are sought among.
    resamples : int
        Of the bootstrap.
    seed : int

    Returns
    -------
    list of SimilarityResult and AnalogyResult
        One per file, in their order.
    """
    lookup = WordLookup(tokens)
    unit = unit_rows(matrix)
    order = np.arange(len(tokens)) if counts is None else np.argsort(-counts, kind="stable")
    results: list[SimilarityResult | AnalogyResult] = []
    for path in files:
        if is_analogy_file(path):
            results.append(score_analogies(path, lookup, unit, order, search=search, resamples=resamples, seed=seed))
        else:
            results.append(score_similarity(path, lookup, unit, resamples=resamples, seed=seed))
    return results


def is_analogy_file(path: str) -> bool:
    """Whether the first line that is not blank starts a section or holds four words."""
    first = next((line for line in _lines(path, "files") if line.strip()), "")
    return first.startswith(":") or ("\t" not in first and len(first.split()) == 4)
