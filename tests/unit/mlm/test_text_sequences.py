from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.states import cut_reference, hash_reference, sample_reference

from wals_spark.errors import InputError
from wals_spark.mlm.text_sequences import (
    SHORTEST_REMAINDER,
    concatenate_sequences,
    cut_documents,
    no_sequences,
    sampling_hash,
    smallest_sequences,
    validation_documents,
)

LENGTH = 12


def arrays(documents):
    flat = np.array([token for tokens in documents.values() for token in tokens], np.int32)
    offsets = np.cumsum([0, *map(len, documents.values())]).astype(np.int64)
    return flat, offsets, np.array(list(documents), np.uint64)


def named(sequences):
    names = zip(sequences.document.tolist(), sequences.start.tolist(), strict=True)
    return [(name, sequences.piece(index).tolist()) for index, name in enumerate(names)]


def random_documents(seed, documents=30, longest=70, size=50):
    generator = np.random.default_rng(seed)
    keys = generator.integers(0, 2**64, documents, dtype=np.uint64).tolist()
    return {key: generator.integers(5, size, generator.integers(0, longest)).tolist() for key in keys}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 90), max_size=8).map(lambda sizes: {key: list(range(n)) for key, n in enumerate(sizes)}),
    st.integers(4, 40),
)
def test_documents_of_any_length_are_cut_as_the_definition_says(documents, length):
    assert dict(named(cut_documents(*arrays(documents), length))) == cut_reference(documents, length)


@pytest.mark.parametrize(
    ("size", "length", "pieces"),
    [(0, 12, []), (1, 12, []), (2, 12, [2]), (10, 12, [10]), (15, 20, [15]), (36, 20, [18, 18]), (18 + 15, 20, [18])],
)
def test_what_is_too_short_is_dropped(size, length, pieces):
    assert cut_documents(*arrays({7: list(range(size))}), length).lengths.tolist() == pieces


def test_a_remainder_of_the_stated_length_is_kept():
    sequences = cut_documents(*arrays({7: list(range(126 + SHORTEST_REMAINDER))}), 128)
    assert sequences.lengths.tolist() == [126, SHORTEST_REMAINDER]
    assert sequences.start.tolist() == [0, 126]


def test_special_tokens_of_the_text_become_the_unknown_token_or_go():
    tokens, offsets, keys = (
        np.array([5, -4, 6, 7, -4, -4, 8, 9], np.int32),
        np.array([0, 4, 8]),
        np.array([1, 2], np.uint64),
    )
    assert named(cut_documents(tokens, offsets, keys, 12, unknown=3)) == [
        ((1, 0), [5, 3, 6, 7]),
        ((2, 0), [3, 3, 8, 9]),
    ]
    assert named(cut_documents(tokens, offsets, keys, 12)) == [((1, 0), [5, 6, 7]), ((2, 0), [8, 9])]


def test_a_later_part_of_a_document_is_named_by_its_position_and_no_whole_document():
    tokens = np.arange(21, dtype=np.int32)
    cut = cut_documents(tokens, np.array([0, 3, 21]), np.array([4, 5], np.uint64), 12, first=1000)
    assert named(cut) == [((5, 0), list(range(3, 13)))]
    cut = cut_documents(tokens[:20], np.array([0, 20]), np.array([4], np.uint64), 12, first=1000)
    assert cut.start.tolist() == [1000, 1010]


def test_a_length_without_room_for_text_is_refused():
    with pytest.raises(InputError, match="sequence length 3: expected at least 4"):
        cut_documents(*arrays({}), 3)


@pytest.mark.parametrize("seed", [1, 2**63 - 1])
def test_the_hash_of_a_name_is_that_of_plain_integers(seed):
    sequences = cut_documents(*arrays(random_documents(1)), LENGTH)
    expected = [hash_reference(0x73616D706C65, seed, *name) for name, _ in named(sequences)]
    assert sampling_hash(sequences, seed).tolist() == expected


@pytest.mark.parametrize("count", [0, 1, 20, 10_000])
def test_a_sample_is_the_smallest_hashes_without_repeated_content(count):
    documents = {key: [token % 2 + 5 for token in tokens] for key, tokens in random_documents(2, longest=26).items()}
    sequences = cut_documents(*arrays(documents), 6)
    expected = sample_reference(cut_reference(documents, 6), count, 9)
    assert named(smallest_sequences(sequences, count, 9)) == expected
    assert len(expected) <= count


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 5), st.integers(1, 40))
def test_samples_of_parts_sampled_together_are_the_sample_of_the_whole(seed, parts, count):
    documents = {key: [token % 3 + 5 for token in tokens] for key, tokens in random_documents(seed, longest=20).items()}
    sequences = cut_documents(*arrays(documents), 6)
    owner = np.random.default_rng(seed).integers(0, parts, len(sequences))
    drawn = [smallest_sequences(sequences.take(owner == part), count, 4) for part in range(parts)]
    together = smallest_sequences(concatenate_sequences(drawn), count, 4)
    assert named(together) == named(smallest_sequences(sequences, count, 4))


def test_pieces_are_taken_in_the_order_of_an_index():
    sequences = cut_documents(*arrays(random_documents(3)), LENGTH)
    index = np.array([5, 0, 7])
    assert named(sequences.take(index)) == [named(sequences)[i] for i in index]
    assert named(concatenate_sequences([no_sequences(), sequences, no_sequences()])) == named(sequences)


def test_documents_are_held_out_by_their_own_hash():
    keys = np.random.default_rng(0).integers(0, 2**64, 20_000, dtype=np.uint64)
    held = validation_documents(keys, 0.1)
    assert held.mean() == pytest.approx(0.1, abs=0.01)
    assert np.array_equal(validation_documents(keys[100:200], 0.1), held[100:200])
    assert np.array_equal(validation_documents(np.repeat(keys[:50], 3), 0.1), np.repeat(held[:50], 3))


@pytest.mark.parametrize(("documents", "fraction", "held"), [(3, 0.0, 0), (1, 0.5, 0), (2, 1e-9, 1), (3, 1 - 1e-9, 2)])
def test_neither_part_of_two_documents_is_empty(documents, fraction, held):
    assert validation_documents(np.arange(documents, dtype=np.uint64), fraction).sum() == held


def test_the_single_document_with_nearly_everything_held_out_is_held_out():
    assert validation_documents(np.zeros(4, np.uint64), 1 - 1e-12).all()
