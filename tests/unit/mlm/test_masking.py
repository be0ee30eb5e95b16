from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.states import masks_reference

from wals_spark.errors import InputError
from wals_spark.mlm.data import SpecialIds
from wals_spark.mlm.masking import Maskings, is_special, masked_positions
from wals_spark.mlm.text_sequences import TextSequences

SPECIAL = SpecialIds(0, 2, 4, frozenset({0, 1, 2, 3, 4}), 60)


def one(tokens, document=11, start=0):
    values = np.array(tokens, np.int32)
    return TextSequences(
        values, np.array([0, len(values)]), np.array([document], np.uint64), np.array([start], np.int64)
    )


def masks(sequences, maskings, index=0):
    return masked_positions(sequences, index, maskings, is_special(SPECIAL))


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(0, 59), max_size=60),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**40),
    st.integers(1, 20),
    st.floats(0.01, 0.99),
    st.integers(0, 2**63 - 1),
)
def test_masks_are_those_of_the_definition(tokens, document, start, count, fraction, seed):
    found = masks(one(tokens, document, start), Maskings(count, fraction, seed))
    assert found.tolist() == masks_reference(tokens, set(SPECIAL.all), (document, start), count, fraction, seed)


def test_fifteen_per_cent_of_the_ordinary_positions_are_hidden():
    tokens = [5 + place % 50 for place in range(126)]
    assert masks(one(tokens), Maskings(4)).shape == (4, 19)
    assert Maskings().hidden(126) == 19
    assert Maskings().hidden(1) == Maskings().hidden(2) == 1
    assert Maskings().hidden(0) == 0


def test_special_tokens_are_never_hidden():
    tokens = [3 if place % 3 else 7 for place in range(60)]
    found = masks(one(tokens), Maskings(9))
    assert {tokens[place] for place in found.ravel()} == {7}
    assert masks(one([3, 3, 1]), Maskings(2)).shape == (2, 0)


def test_maskings_of_a_cycle_hide_different_positions():
    found = masks(one(list(range(5, 55)) * 2), Maskings(6))
    assert len(np.unique(found)) == 6 * 15


def test_the_first_maskings_do_not_depend_on_how_many_there_are():
    sequences = one(list(range(5, 55)))
    assert np.array_equal(masks(sequences, Maskings(12))[:4], masks(sequences, Maskings(4)))


def test_the_masks_of_a_sequence_do_not_depend_on_the_others():
    tokens = np.arange(5, 55, dtype=np.int32)
    both = TextSequences(
        np.concatenate([tokens, tokens]), np.array([0, 50, 100]), np.array([3, 11], np.uint64), np.array([126, 0])
    )
    assert np.array_equal(masks(both, Maskings(5), index=1), masks(one(tokens), Maskings(5)))
    assert not np.array_equal(masks(both, Maskings(5), index=0), masks(both, Maskings(5), index=1))


@pytest.mark.parametrize("other", [{"document": 12}, {"start": 1}, {"seed": 2}])
def test_document_start_and_seed_each_change_the_masks(other):
    tokens, seed = list(range(5, 55)), other.pop("seed", 1)
    changed = masks(one(tokens, **other), Maskings(4, seed=seed))
    assert not np.array_equal(changed, masks(one(tokens), Maskings(4)))


def test_every_position_is_hidden_about_equally_often():
    tokens = list(range(5, 45))
    counts = sum(
        np.bincount(masks(one(tokens, document), Maskings(1)).ravel(), minlength=40) for document in range(2000)
    )
    assert counts.sum() == 2000 * 6
    assert abs(counts - 300).max() < 5 * np.sqrt(300)


@pytest.mark.parametrize("values", [{"count": 0}, {"fraction": 0.0}, {"fraction": 1.0}])
def test_maskings_that_hide_nothing_or_everything_are_refused(values):
    with pytest.raises(InputError, match="expected at least 1, and a share between 0 and 1"):
        Maskings(**values)
