from __future__ import annotations

import numpy as np
import pytest
from oracles.states import cut_reference, sample_reference

from wals_spark.inject.fit.sample import Sampling, draw_sequences, first_share
from wals_spark.mlm.text_sequences import concatenate_sequences, smallest_sequences
from wals_spark.token_shards import document_key, list_shards, split_shards, writer

SEED = 3


def random_documents(documents=60, size=40, longest=50):
    generator = np.random.default_rng(1)
    return {f"doc-{d}": generator.integers(5, size, generator.integers(0, longest)).tolist() for d in range(documents)}


def expected(documents, length, count):
    keyed = {document_key(name): tokens for name, tokens in documents.items()}
    return sample_reference(cut_reference(keyed, length), count, SEED)


def named(sequences):
    names = zip(sequences.document.tolist(), sequences.start.tolist(), strict=True)
    return [(name, sequences.piece(index).tolist()) for index, name in enumerate(names)]


def drawn(directory, sampling, share=1.0, parts=1):
    ranges = split_shards(list_shards(directory), 1)
    found = [draw_sequences(ranges[part::parts], sampling, share) for part in range(parts)]
    return smallest_sequences(concatenate_sequences(found), sampling.count, sampling.seed)


@pytest.mark.parametrize(("shards", "parts"), [(1, 1), (3, 1), (3, 3), (7, 2)])
def test_any_shards_and_any_partitioning_give_the_sample_of_the_definition(write_shards, shards, parts):
    documents = random_documents()
    found = drawn(write_shards(documents, shards), Sampling(25, 12, SEED), parts=parts)
    assert named(found) == expected(documents, 12, 25)


def test_a_document_of_several_record_batches_is_cut_once(write_shards, monkeypatch):
    monkeypatch.setattr(writer, "PIECE_TOKENS", 1000)
    monkeypatch.setattr(writer, "BATCH_TOKENS", 1000)
    documents = {"long": np.random.default_rng(0).integers(5, 3000, 2500).tolist(), "short": list(range(5, 40))}
    directory = write_shards(documents)
    assert len(list_shards(directory)[0].batches) == 4
    whole = drawn(directory, Sampling(10_000, 102, SEED))
    long = document_key("long")
    assert sorted(name[1] for name, _ in named(whole) if name[0] == long) == list(range(0, 2500, 100))
    assert all(tokens == documents["long"][start : start + 100] for (key, start), tokens in named(whole) if key == long)
    assert named(drawn(directory, Sampling(10_000, 102, SEED), parts=3)) == named(whole)


def test_below_a_bound_lie_the_first_of_the_sample(write_shards):
    documents = random_documents()
    directory = write_shards(documents)
    some = named(drawn(directory, Sampling(1000, 12, SEED), share=0.3))
    every = expected(documents, 12, 1000)
    assert 0.2 * len(every) < len(some) < 0.4 * len(every)
    assert some == every[: len(some)]


def test_the_first_bound_leaves_enough():
    assert first_share(Sampling(100, 128, SEED), 1000) == 1.0
    assert first_share(Sampling(2000, 128, SEED), 126 * 10**6) == pytest.approx(0.002332, rel=1e-3)
