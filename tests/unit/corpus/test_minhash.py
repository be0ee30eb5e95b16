from __future__ import annotations

import random

import numpy as np

from wals_spark.corpus import minhash
from wals_spark.corpus.document_batch import DocumentBatch
from wals_spark.corpus.minhash import PERMUTATIONS, SHINGLE, band_keys, minhash_signatures, similar_to_earlier
from wals_spark.corpus.words import WordEncoder


def to_batch(texts):
    return DocumentBatch.from_texts([str(n) for n in range(len(texts))], [text.encode() for text in texts])


def shingles(text):
    words = text.split()
    return {tuple(words[start : start + SHINGLE]) for start in range(max(len(words) - SHINGLE, 0) + 1)}


def altered(words, share, rng):
    return [rng.choice("abcdefgh") * 3 if rng.random() < share else word for word in words]


def test_signatures_estimate_the_share_of_common_shingles():
    rng = random.Random(3)
    vocabulary = [f"w{n}" for n in range(500)]
    for share in (0.0, 0.01, 0.03, 0.1, 1.0):
        first = rng.choices(vocabulary, k=2000)
        texts = [" ".join(first), " ".join(altered(first, share, rng))]
        a, b = map(shingles, texts)
        exact = len(a & b) / len(a | b)
        found = minhash_signatures(to_batch(texts), WordEncoder(r"\w+", "lower"))
        estimate = float((found[0] == found[1]).mean())
        assert abs(estimate - exact) < 4 * np.sqrt(max(exact * (1 - exact), 1e-9) / PERMUTATIONS) + 1e-9


def test_signatures_do_not_depend_on_the_batch_or_the_words_seen_before():
    texts = ["one two three four five six", "seven", "", "!!!", "one two three four five six"]
    together = minhash_signatures(to_batch(texts), WordEncoder(r"\w+", "lower"))
    used = WordEncoder(r"\w+", "lower")
    minhash_signatures(to_batch(["five four three"]), used)
    alone = [minhash_signatures(to_batch([text]), used)[0] for text in reversed(texts)]
    assert together.tolist() == np.stack(alone[::-1]).tolist()
    assert together[0].tolist() == together[4].tolist()
    assert together[2].tolist() != together[3].tolist()


def test_a_signature_is_that_of_its_definition():
    text = "a b c d e f a b"
    encoder = WordEncoder(r"\w+", "lower")
    (found,) = minhash_signatures(to_batch([text]), encoder)
    hashes = dict(zip(encoder.words(), encoder.hashes.tolist(), strict=True))
    mask = (1 << 64) - 1
    words = text.split()
    values = []
    for start in range(len(words) - SHINGLE + 1):
        shingle = 14695981039346656037
        for word in words[start : start + SHINGLE]:
            shingle = (shingle ^ hashes[word]) * 1099511628211 & mask
            shingle ^= shingle >> 29
        values.append(shingle)
    expected = [
        min(((int(a) * value + int(b)) & mask) >> 32 for value in values)
        for a, b in zip(minhash.MULTIPLIERS, minhash.ADDENDS, strict=True)
    ]
    assert found.tolist() == expected


def test_similar_documents_are_found_and_the_first_stays():
    rng = random.Random(4)
    vocabulary = [f"w{n}" for n in range(2000)]
    originals = [rng.choices(vocabulary, k=400) for _ in range(50)]
    texts = [" ".join(words) for words in originals]
    texts += [" ".join(altered(words, 0.005, rng)) for words in originals[:20]]
    found = minhash_signatures(to_batch(texts), WordEncoder(r"\w+", "lower"))
    keys = band_keys(found)
    positions = np.broadcast_to(np.arange(len(texts))[:, None], keys.shape)
    again = similar_to_earlier(keys.ravel(), positions.ravel(), lambda at: found[at], 0.8)
    expected = [n for n in range(50, 70) if (found[n] == found[n - 50]).mean() >= 0.8]
    assert again.tolist() == expected
    assert len(expected) >= 18
    same = [n for n in range(50, 70) if texts[n] == texts[n - 50]]
    assert similar_to_earlier(keys.ravel(), positions.ravel(), lambda at: found[at], 1.0).tolist() == same
