from __future__ import annotations

import random
import re
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from wals_spark.corpus.document_batch import DocumentBatch
from wals_spark.corpus.token_counter import TokenCounter
from wals_spark.corpus.vocabulary import HashCollisionError, assign_ids, merge_counts, pack_counts, vocabulary_rows
from wals_spark.corpus.words import WordEncoder


def count_parts(parts, buckets, **index_keys):
    """The records of several tasks, by bucket."""
    by_bucket = {bucket: [] for bucket in range(buckets)}
    for documents in parts:
        index, counter = WordEncoder("[a-z]+", "lower", **index_keys), TokenCounter()
        batch = DocumentBatch.from_texts([str(n) for n in range(len(documents))], [text.encode() for text in documents])
        found = index.encode(batch)
        counter.add(found.tokens, found.offsets, index.size)
        for record in pack_counts(index, counter, buckets):
            by_bucket[record.bucket].append(record.payload)
    return by_bucket


def corpus(seed=0):
    rng = random.Random(seed)
    return [" ".join(rng.choices("abcdefgh", k=2)[0] * rng.randrange(1, 4) for _ in range(30)) for _ in range(40)]


@pytest.mark.parametrize("tasks", [1, 3, 40])
@pytest.mark.parametrize("buckets", [1, 4])
def test_merged_counts_equal_a_plain_count(tasks, buckets):
    documents = corpus()
    parts = [documents[n::tasks] for n in range(tasks)]
    merged = [merge_counts(payloads, 20) for payloads in count_parts(parts, buckets).values()]
    table = pa.concat_tables([part.table for part in merged])
    counts = Counter(word for text in documents for word in re.findall("[a-z]+", text))
    holders = Counter(word for text in documents for word in set(re.findall("[a-z]+", text)))
    expected = {(word, n, holders[word]) for word, n in counts.items() if n >= 20}
    found = zip(*(table[name].to_pylist() for name in ("token", "count", "document_count")), strict=True)
    assert set(found) == expected
    assert sum(part.distinct for part in merged) == len(counts)


def test_words_that_share_a_hash_are_never_merged():
    (payloads,) = count_parts([corpus()], 1, hash_bits=2).values()
    with pytest.raises(HashCollisionError, match=r"'\w+' and '\w+'"):
        merge_counts(payloads, 1)


def test_known_words_are_kept_however_rare():
    (payloads,) = count_parts([["a a a b"]], 1).values()
    merged = merge_counts(payloads, 3, pa.array(["b"], pa.large_string()))
    assert sorted(merged.table["token"].to_pylist()) == ["a", "b"]


def table(**counts):
    names = list(counts)
    return pa.table(
        {
            "token": pa.array(names, pa.large_string()),
            "hash": pa.array(range(100, 100 + len(names)), pa.uint64()),
            "count": pa.array(list(counts.values()), pa.int64()),
            "document_count": pa.array([1] * len(names), pa.int64()),
        }
    )


def test_ids_go_by_descending_count_and_ties_by_code_points():
    ranked = assign_ids(table(b=5, a=5, z=9, é=5, c=6), (), 5, None)
    assert ranked.tokens == ["z", "c", "a", "b", "é"]
    assert ranked.counts.tolist() == [9, 6, 5, 5, 5]
    by_hash = dict(zip(ranked.hashes.tolist(), ranked.hashed_ids.tolist(), strict=True))
    assert by_hash == {102: 0, 104: 1, 101: 2, 100: 3, 103: 4}


def test_the_largest_vocabulary_keeps_the_most_frequent():
    assert assign_ids(table(b=5, a=5, z=9, c=6), (), 1, 2).tokens == ["z", "c"]


def test_known_words_keep_their_ids_and_new_ones_follow():
    ranked = assign_ids(table(new=50, old=2, newer=7, rare=1), ["gone", "old"], 5, None)
    assert ranked.tokens == ["gone", "old", "new", "newer"]
    assert ranked.counts.tolist() == [0, 2, 50, 7]
    assert ranked.new == 2


def test_a_full_vocabulary_takes_no_new_words():
    ranked = assign_ids(table(new=50, old=2), ["gone", "old"], 5, 2)
    assert (ranked.tokens, ranked.new) == (["gone", "old"], 0)


def test_rows_mark_special_tokens():
    rows = vocabulary_rows(["<s>", "a"], np.array([0, 3]), np.array([0, 2]), frozenset({0}))
    assert rows["is_special"].to_pylist() == [True, False]
    assert rows["token_id"].to_pylist() == [0, 1]
