from __future__ import annotations

import numpy as np
import pytest

from wals_spark.errors import InputError
from wals_spark.mlm.data import pack_sequences
from wals_spark.mlm.rare import PER_TYPE, REACH, bucket_names, bucket_of, context_probe, target_probe


@pytest.fixture
def packed(special):
    generator = np.random.default_rng(0)
    zipf = np.minimum(generator.zipf(1.3, size=(60, 200)), 18) + 4
    return pack_sequences(list(zipf.astype(np.int32)), special, 34)


COUNTS = np.array([0] * 5 + [20_000, 5_000, 2_000, 300, 120, 60, 30, 12, 8, 3, 2, 1] + [0] * 6)


def test_buckets_are_those_of_the_protocol():
    assert bucket_names() == ("0", "1-4", "5-19", "20-99", "100-999", "1000-9999", "10000+")
    counts = [0, 1, 4, 5, 19, 20, 99, 100, 999, 1000, 9999, 10_000, 10**9]
    assert bucket_of(np.array(counts)).tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]


def test_the_target_probe_hides_the_tokens_themselves(packed, special):
    probe = target_probe(packed, COUNTS, special, 1, per_bucket=100)
    masked = probe.masked
    assert (masked.inputs[masked.row, masked.column] == special.mask).all()
    assert np.array_equal(probe.token_type, masked.target)
    assert np.array_equal(probe.bucket, bucket_of(COUNTS[masked.target]))


def test_no_type_bucket_or_sequence_gives_more_than_its_share(packed, special):
    probe = target_probe(packed, COUNTS, special, 1, per_bucket=70, fraction=0.15)
    assert np.bincount(probe.token_type).max() <= PER_TYPE
    assert np.bincount(probe.bucket).max() <= 70
    assert np.bincount(probe.masked.row).max() <= int(0.15 * 34)


def test_the_rarest_come_first_where_a_sequence_is_full(packed, special):
    few = target_probe(packed, COUNTS, special, 1, per_bucket=10_000, fraction=0.04)
    rare_rows = np.unique(np.nonzero(bucket_of(COUNTS[packed.ids]) == 1)[0])
    rare_kinds = few.bucket[np.isin(few.masked.row, rare_rows)]
    assert (few.bucket == 1).sum() > 0
    assert len(few.masked.row) == len(np.unique(few.masked.row))
    assert len(rare_kinds) > 0


def test_the_context_probe_hides_a_frequent_neighbour_and_shows_the_token(packed, special):
    probe = context_probe(packed, COUNTS, special, 1, per_bucket=100)
    masked = probe.masked
    assert (COUNTS[masked.target] >= 1000).all()
    assert (probe.bucket < 5).any()
    for row, column, kind in zip(masked.row, masked.column, probe.token_type, strict=True):
        low, high = max(0, column - REACH), column + REACH + 1
        assert kind in masked.inputs[row, low:high] or COUNTS[kind] >= 1000


def test_a_position_is_hidden_once(packed, special):
    for probe in (
        target_probe(packed, COUNTS, special, 1, per_bucket=1000),
        context_probe(packed, COUNTS, special, 1, per_bucket=1000),
    ):
        positions = probe.masked.row.astype(np.int64) * 34 + probe.masked.column
        assert len(np.unique(positions)) == len(positions)


def test_the_same_seed_gives_the_same_probe(packed, special):
    first = target_probe(packed, COUNTS, special, 1, per_bucket=50)
    second = target_probe(packed, COUNTS, special, 1, per_bucket=50)
    assert np.array_equal(first.masked.inputs, second.masked.inputs)
    assert np.array_equal(first.masked.row, second.masked.row)


def test_counts_of_another_tokenizer_are_refused(packed, special):
    with pytest.raises(InputError, match="has no count: 10 counts were given"):
        target_probe(packed, COUNTS[:10], special, 1, per_bucket=50)


def test_no_sequences_give_no_targets(special):
    empty = pack_sequences([], special, 34)
    assert len(target_probe(empty, COUNTS, special, 1, per_bucket=50).masked) == 0
    assert len(context_probe(empty, COUNTS, special, 1, per_bucket=50).masked) == 0
