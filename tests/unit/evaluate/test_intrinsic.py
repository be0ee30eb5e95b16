from __future__ import annotations

import math

import numpy as np
import pytest

from wals_spark.errors import InputError
from wals_spark.evaluate.intrinsic import (
    AnalogyResult,
    SimilarityResult,
    read_pairs,
    read_questions,
    score_analogies,
    score_similarity,
    score_vectors,
    spearman,
    vector_geometry,
)
from wals_spark.factors.top_k import unit_rows
from wals_spark.factors.words import WordLookup


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    "text",
    ["a\tb\t1\nc\td\t2.5\n", "a b 1\nc d 2.5", "word1,word2,score\na,b,1\nc,d,2.5", "# rated\na;b;1\n\nc;d;2.5\n"],
)
def test_rated_pairs_are_read_in_the_usual_forms(tmp_path, text):
    assert read_pairs(write(tmp_path / "pairs.txt", text)) == [("a", "b", 1.0), ("c", "d", 2.5)]


@pytest.mark.parametrize(
    ("text", "message"), [("a b 1\nc d\n", "line 2"), ("a b 1\nc d nan\n", "line 2"), ("", "no pairs")]
)
def test_a_line_that_is_no_pair_is_named(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_pairs(write(tmp_path / "pairs.txt", text))


def test_files_that_are_missing_or_not_utf8_are_refused(tmp_path):
    with pytest.raises(InputError, match="there is no file at"):
        read_pairs(str(tmp_path / "nothing.txt"))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 bar 1\n")
    with pytest.raises(InputError, match="not UTF-8"):
        read_pairs(str(tmp_path / "latin.txt"))


def test_questions_are_read_by_section(tmp_path):
    path = write(tmp_path / "q.txt", ": capitals\na b c d\n\n: family\ne f g h\n")
    assert read_questions(path) == [("capitals", "a", "b", "c", "d"), ("family", "e", "f", "g", "h")]
    with pytest.raises(InputError, match=r"line 2.*four words"):
        read_questions(write(tmp_path / "bad.txt", ": x\na b c\n"))
    with pytest.raises(InputError, match="no analogy questions"):
        read_questions(write(tmp_path / "empty.txt", ": x\n"))


def test_spearman_is_scipys_with_ties_and_its_interval_holds_it():
    from scipy.stats import spearmanr

    generator = np.random.default_rng(0)
    x = np.round(generator.normal(size=200), 1)
    y = np.round(x + generator.normal(size=200), 1)
    interval = spearman(x, y, resamples=500)
    assert interval.value == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    assert interval.low < interval.value < interval.high
    theory = 1.96 * math.sqrt((1 + interval.value**2 / 2) / 197) * (1 - interval.value**2)
    assert (interval.high - interval.low) / 2 == pytest.approx(theory, rel=0.2)


def test_spearman_of_too_few_or_constant_values_is_no_number():
    assert math.isnan(spearman(np.array([1.0, 2.0]), np.array([1.0, 2.0])).value)
    constant = spearman(np.ones(9), np.arange(9.0), resamples=100)
    assert math.isnan(constant.value)
    assert math.isnan(constant.low)


def test_similarity_counts_what_it_covers(tmp_path):
    path = write(tmp_path / "WS.txt", "cat dog 9\ncat car 1\ndog car 2\ncat unheard 5\ncat zero 3\n")
    tokens = ["Ġcat", "Ġdog", "Ġcar", "Ġzero", "cat"]
    matrix = np.array([[1, 0.1], [1, 0], [0.1, 1], [0, 0], [-1, -1]], np.float32)
    result = score_similarity(path, WordLookup(tokens), unit_rows(matrix), resamples=100)
    assert (result.name, result.pairs, result.covered) == ("WS", 5, 3)
    assert result.rho.value == pytest.approx(0.5)


def test_analogies_equal_the_definition(tmp_path):
    generator = np.random.default_rng(0)
    tokens = [f"w{i}" for i in range(60)]
    matrix = generator.normal(size=(60, 5)).astype(np.float32)
    unit = unit_rows(matrix).astype(np.float64)
    quads = np.stack([generator.permutation(40)[:4] for _ in range(300)])
    lines = [" ".join(f"w{i}" for i in quad) for quad in quads]
    path = write(tmp_path / "q.txt", "\n".join(lines))
    add, mul = [], []
    for a, b, c, d in quads:
        free = [i for i in range(50) if i not in (a, b, c)]
        cos = unit @ unit.T
        shifted = (cos + 1) / 2
        add.append(max(free, key=lambda i: cos[i, b] - cos[i, a] + cos[i, c]) == d)
        mul.append(max(free, key=lambda i: shifted[i, b] * shifted[i, c] / (shifted[i, a] + 1e-3)) == d)
    result = score_analogies(path, WordLookup(tokens), unit_rows(matrix), np.arange(60), search=50, resamples=100)
    assert result.covered == 300
    assert result.add.value == pytest.approx(np.mean(add))
    assert result.mul.value == pytest.approx(np.mean(mul))
    assert result.add.value > 0


def test_analogies_with_words_outside_the_search_vocabulary_are_not_covered(tmp_path):
    tokens = [f"w{i}" for i in range(9)]
    path = write(tmp_path / "q.txt", ": s\nw0 w1 w2 w3\nw0 w1 w2 w8\nw0 w1 w2 nothing\nw0 w1 w0 w1\n")
    matrix = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    result = score_analogies(path, WordLookup(tokens), unit_rows(matrix), np.arange(9), search=8, resamples=100)
    assert (result.questions, result.covered) == (4, 1)
    none = score_analogies(path, WordLookup(tokens), unit_rows(matrix), np.arange(9), search=3, resamples=100)
    assert none.covered == 0
    assert math.isnan(none.add.value)


def test_perfect_offsets_are_solved(tmp_path):
    generator = np.random.default_rng(1)
    base, shift = generator.normal(size=(10, 20)), 3 * generator.normal(size=20)
    tokens = [f"m{i}" for i in range(10)] + [f"f{i}" for i in range(10)]
    path = write(tmp_path / "q.txt", "\n".join(f"m{i} f{i} m{j} f{j}" for i in range(10) for j in range(10) if i != j))
    (result,) = score_vectors(tokens, np.concatenate([base, base + shift]), [path], resamples=100)
    assert isinstance(result, AnalogyResult)
    assert result.add.value > 0.9


def test_score_vectors_tells_the_files_apart(tmp_path):
    pairs = write(tmp_path / "pairs.txt", "w0\tw1\t1\nw0\tw2\t2\nw1\tw2\t3\n")
    questions = write(tmp_path / "questions.txt", "w0 w1 w2 w3\n")
    matrix = np.random.default_rng(0).normal(size=(4, 3))
    found = score_vectors([f"w{i}" for i in range(4)], matrix, [pairs, questions], resamples=100)
    assert isinstance(found[0], SimilarityResult)
    assert isinstance(found[1], AnalogyResult)


def test_counts_decide_which_tokens_are_frequent(tmp_path):
    path = write(tmp_path / "q.txt", "w0 w1 w2 w3\n")
    matrix = np.random.default_rng(0).normal(size=(8, 3))
    tokens = [f"w{i}" for i in range(8)]
    (rare,) = score_vectors(tokens, matrix, [path], counts=np.arange(8), search=4, resamples=100)
    (frequent,) = score_vectors(tokens, matrix, [path], counts=8 - np.arange(8), search=4, resamples=100)
    assert (rare.covered, frequent.covered) == (0, 1)


def test_geometry_of_an_isotropic_and_of_a_flat_cloud():
    generator = np.random.default_rng(0)
    counts = np.ones(3000)
    round_cloud = generator.normal(size=(3000, 10))
    shape = vector_geometry(unit_rows(round_cloud), round_cloud, counts)
    assert abs(shape.mean_cosine) < 0.01
    assert shape.effective_rank == pytest.approx(10, abs=0.1)
    line = np.outer(np.ones(3000), np.arange(1.0, 11.0))
    flat = vector_geometry(unit_rows(line), line, counts)
    assert flat.mean_cosine == pytest.approx(1, abs=1e-5)
    assert flat.effective_rank == pytest.approx(1, abs=1e-4)
    assert flat.first_share == pytest.approx(1)


def test_geometry_of_nothing_is_no_number():
    assert math.isnan(vector_geometry(np.zeros((4, 2)), np.zeros((4, 2)), np.ones(4)).mean_cosine)


def test_gensim_gives_the_same_figures(data, tmp_path):
    models = pytest.importorskip("gensim.models", reason="gensim is in the benchmark extra")
    words = sorted({w for a, b, _ in read_pairs(str(data / "similarity" / "EN-WS-353-ALL.txt")) for w in (a, b)})
    lower = list(dict.fromkeys(w.lower() for w in words))
    matrix = np.random.default_rng(0).normal(size=(len(lower), 10)).astype(np.float32)
    peer = models.KeyedVectors(10)
    peer.add_vectors(lower, matrix)
    path = str(data / "similarity" / "EN-WS-353-ALL.txt")
    (result,) = score_vectors(lower, matrix, [path], resamples=100)
    assert isinstance(result, SimilarityResult)
    expected = peer.evaluate_word_pairs(path, case_insensitive=True)
    assert result.rho.value == pytest.approx(expected[1].statistic, abs=1e-6)
