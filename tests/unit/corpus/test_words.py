from __future__ import annotations

import random
import re

import numpy as np
import pytest

from wals_spark.corpus import words
from wals_spark.corpus.document_batch import DocumentBatch
from wals_spark.corpus.token_counter import TokenCounter
from wals_spark.corpus.word_rules import words_and_breaks
from wals_spark.corpus.words import WordEncoder, character_tables

ONE_CLASS = [r"[a-z]+", r"[^\W\d_]+", r"\w+", r"\S+", r"[a-zäöü']+", r"[^\s.]+", r"\d+", r"[A-Z]+", r"[\w.?!)\"]+"]
LETTERS = (
    "abcXYZ .!?\n\t\"')]}'_-09"
    "äÖßİıSſKÅΣσςΩÀẞŉǅfiﬃΐᾷⅠⓐ"
    "\u0301\u0307\u00a0\u2026\u2019\u201d\u00bb\u3002\uff01中文あк҂\U00010400\U0001f600\u0345"
)


def texts(seed, number=300, length=60):
    rng = random.Random(seed)
    return ["".join(rng.choices(LETTERS, k=rng.randrange(length))) for _ in range(number)]


def encode(index, documents):
    batch = DocumentBatch.from_texts([str(n) for n in range(len(documents))], [text.encode() for text in documents])
    found = index.encode(batch)
    known = index.words()
    return [
        (
            [known[token] for token in found.tokens[found.offsets[d] : found.offsets[d + 1]]],
            found.breaks[found.break_offsets[d] : found.break_offsets[d + 1]].tolist(),
        )
        for d in range(len(documents))
    ]


@pytest.mark.parametrize("case", ["keep", "lower", "fold"])
@pytest.mark.parametrize("pattern", ONE_CLASS)
def test_the_kernel_equals_re(pattern, case):
    documents = ["", " ", "ends", "İİ", "ΑΣ ΣΑ Σ", *texts(hash(pattern) % 1000), *texts(2, 20, 500)]
    encoder = WordEncoder(pattern, case)
    assert encoder.characters is not None
    compiled = re.compile(pattern)
    assert encode(encoder, documents) == [words_and_breaks(text, compiled, case) for text in documents]


@pytest.mark.parametrize("case", ["keep", "lower", "fold"])
def test_every_character_is_treated_as_re_does(case):
    documents = [
        "".join(f"a{chr(code)}b {chr(code)} " for code in range(start, start + 0x400) if not 0xD800 <= code < 0xE000)
        for start in range(0, 0x20000, 0x400)
    ]
    encoder = WordEncoder(r"[^\W\d_]+", case)
    compiled = re.compile(r"[^\W\d_]+")
    assert encode(encoder, documents) == [words_and_breaks(text, compiled, case) for text in documents]


@pytest.mark.parametrize(
    "pattern", [r"[a-z]+(?:'[a-z]+)?", r"\b\w+\b", r"[a-z]*", r"a|b+", r"(a)(b)", r"[[a]+", r"[^]]+"]
)
def test_other_patterns_go_through_re(pattern):
    documents = texts(3, 100)
    encoder = WordEncoder(pattern, "lower")
    assert encoder.characters is None
    compiled = re.compile(pattern)
    assert encode(encoder, documents) == [words_and_breaks(text, compiled, "lower") for text in documents]


def test_the_dictionary_grows_and_stays_right():
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices("abcdefghij", k=8)) for _ in range(60_000)]
    documents = [" ".join(rng.choices(vocabulary, k=200)) for _ in range(1000)]
    encoder = WordEncoder("[a-z]+", "keep")
    compiled = re.compile("[a-z]+")
    assert encode(encoder, documents) == [words_and_breaks(text, compiled, "keep") for text in documents]
    assert encoder.size > 1 << 15


def test_one_word_of_a_megabyte():
    word = "x" * 1_000_000
    encoder = WordEncoder("[a-z]+", "lower")
    assert encode(encoder, [f"a {word} b", word])[1] == ([word], [])
    assert encoder.words() == ["a", word, "b"]


def test_short_hashes_collide_and_the_words_stay_apart():
    encoder = WordEncoder("[a-z]+", "lower", hash_bits=3)
    documents = texts(5)
    compiled = re.compile("[a-z]+")
    assert encode(encoder, documents) == [words_and_breaks(text, compiled, "lower") for text in documents]
    assert len(np.unique(encoder.hashes)) <= 8 < encoder.size


def test_hashes_do_not_depend_on_the_path_or_the_order():
    kernel, rules = WordEncoder(r"[a-z]+", "lower", seed=3), WordEncoder(r"(?:[a-z])+", "lower", seed=3)
    documents = texts(7)
    encode(kernel, documents)
    encode(rules, documents[::-1])
    assert dict(zip(kernel.words(), kernel.hashes.tolist(), strict=True)) == dict(
        zip(rules.words(), rules.hashes.tolist(), strict=True)
    )
    other = WordEncoder(r"[a-z]+", "lower", seed=4)
    encode(other, documents)
    assert other.hashes.tolist() != kernel.hashes.tolist()


def test_the_hash_is_fnv1a():
    encoder = WordEncoder("[a-z]+", "lower")
    encode(encoder, ["foobar"])
    assert encoder.hashes.tolist() == [0x85944171F73967E8]


def test_breaks_between_words():
    encoder = WordEncoder("[a-z]+", "lower")
    text = 'One two. Three "four." five\nsix; 3.5 seven e.g. eight\n\n nine。ten .\n'
    assert encode(encoder, [text])[0][1] == [2, 6, 9, 16, 19, 20]


def test_tally_counts_occurrences_and_documents():
    counter = TokenCounter(2)
    counter.add(np.array([0, 1, 1, -1, 5], np.int32), np.array([0, 3, 5]), 6)
    counter.add(np.array([1], np.int32), np.array([0, 1]), 6)
    assert counter.counts[:6].tolist() == [1, 3, 0, 0, 0, 1]
    assert counter.document_counts[:6].tolist() == [1, 2, 0, 0, 0, 1]


def test_tables_of_one_class_only():
    assert character_tables(r"[a-z]+x", "lower") is None
    assert character_tables(r"[a-z]+", "lower").ascii[ord("A")] == ord("a")
    assert words.character_tables(r"[a-z]+", "keep").ascii[ord("A")] == 0


def test_real_text_equals_re(data):
    import pyarrow.parquet as pq

    source = pq.ParquetFile(data / "corpora" / "enwiki" / "part-0.parquet")
    documents = source.read_row_group(0, columns=["text"])["text"].to_pylist()[:150]
    encoder = WordEncoder(r"[^\W\d_]+", "lower")
    compiled = re.compile(r"[^\W\d_]+")
    assert encode(encoder, documents) == [words_and_breaks(text, compiled, "lower") for text in documents]
