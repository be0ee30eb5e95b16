"""Weights, units, head-room, presets."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from oracles.cooccurrence import count_pairs, occurrence_hash

from wals_spark.config import CooccurrenceConfig, load_config
from wals_spark.cooccurrence.semantics import keep_thresholds, semantics_from_facts, semantics_of
from wals_spark.errors import ConfigError, InputError
from wals_spark.token_shards import OOV, PARAGRAPH


@pytest.mark.parametrize("window", [1, 2, 5, 10, 15, 20, 22])
def test_inverse_weights_are_exact(window):
    semantics = semantics_of(CooccurrenceConfig(window_left=window, window_right=window))
    assert semantics.exact_unit
    assert [Fraction(units, semantics.unit) for units in semantics.left] == [
        Fraction(1, d) for d in range(1, window + 1)
    ]


def test_the_largest_window_with_an_exact_unit_is_22():
    """lcm(1 .. 22) = 232,792,560 units leave room for 2^31 occurrences; lcm(1 .. 23) is 23 times as much."""
    assert semantics_of(CooccurrenceConfig(window_left=22, window_right=22)).unit == math.lcm(*range(1, 23))
    assert semantics_of(CooccurrenceConfig(window_left=23, window_right=23)).unit == 1 << 24


@pytest.mark.parametrize("window", [23, 25, 100, 255])
def test_long_windows_have_a_power_of_two_unit_and_a_bound(window):
    semantics = semantics_of(CooccurrenceConfig(window_left=window, window_right=window))
    assert semantics.unit == 1 << 24
    assert semantics.units_per_occurrence < 1 << 32
    assert not semantics.exact_unit
    errors = [abs(Fraction(units, semantics.unit) - Fraction(1, d)) for d, units in enumerate(semantics.left, 1)]
    assert max(errors) <= Fraction(1, 2 * semantics.unit) == Fraction(semantics.weight_error)


def test_linear_and_plain_weights():
    linear = semantics_of(CooccurrenceConfig(distance_weighting="linear", window_left=4, window_right=4))
    assert (linear.unit, linear.left) == (4, (4, 3, 2, 1))
    plain = semantics_of(CooccurrenceConfig(distance_weighting="none", window_left=2, window_right=0))
    assert (plain.unit, plain.left, plain.right) == (1, (1, 1), ())
    assert not plain.symmetric


def test_facts_say_everything():
    semantics = semantics_of(CooccurrenceConfig(window_left=3, subsample=0.1, unit_bits=9), seed=4)
    assert semantics_from_facts(semantics.facts()) == semantics


def test_head_room_is_checked_before_counting():
    semantics = semantics_of(CooccurrenceConfig())
    largest = (2**63 - 1) // semantics.units_per_occurrence
    semantics.check_head_room(largest)
    with pytest.raises(InputError, match=r"counts could overflow.*unit_bits to (\d+)"):
        semantics.check_head_room(largest + 1)


def test_the_unit_advised_has_the_room():
    semantics = semantics_of(CooccurrenceConfig(unit_bits=48))
    with pytest.raises(InputError) as error:
        semantics.check_head_room(10**12)
    bits = int(str(error.value).partition("unit_bits to ")[2].split()[0])
    semantics_of(CooccurrenceConfig(unit_bits=bits)).check_head_room(10**12)


@pytest.mark.parametrize(
    ("preset", "text", "expected"),
    [
        # GloVe closes the gap over unknown words, breaks at lines, and adds a self pair from both ends.
        ("glove", [0, OOV, 1, 0, PARAGRAPH, 1], {(0, 1): 2.0, (1, 0): 2.0, (0, 0): 1.0}),
        # Swivel adds 1 per occurrence to the diagonal.
        ("swivel", [0, OOV, 1, PARAGRAPH, 1], {(0, 1): 1.0, (1, 0): 1.0, (0, 0): 1.0, (1, 1): 2.0}),
        # hyperwords with a dynamic window of 2: weight 1 at distance 1, 1/2 at distance 2; unknown words stay.
        ("hyperwords", [0, OOV, 1, 0], {(0, 1): 1.5, (1, 0): 1.5}),
        # text2vec keeps the distance, crosses lines, and counts a self pair once.
        ("text2vec", [0, OOV, 1, PARAGRAPH, 0], {(0, 1): 1.5, (1, 0): 1.5, (0, 0): 1 / 3}),
    ],
)
def test_presets_by_hand(preset, text, expected):
    semantics = semantics_of(CooccurrenceConfig(preset=preset))
    found = count_pairs([(0, text)], semantics)
    assert {pair: units / semantics.unit for pair, units in found.items()} == pytest.approx(expected)


def test_a_preset_fills_in_what_is_left_out():
    config = CooccurrenceConfig(preset="glove", window_left=4, window_right=4)
    assert (config.window_left, config.oov, config.boundary) == (4, "close_gap", "paragraph")
    assert config.result_keys() == CooccurrenceConfig(**config.result_keys()).result_keys()


def test_a_preset_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match=r"cooccurrence\.preset"):
        load_config(None, ["cooccurrence.preset=word2vec"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cooccurrence.window_left=256", "window_left"),
        ("cooccurrence.window_left=-1", "window_left"),
        ("cooccurrence.subsample=1.5", "subsample"),
        ("cooccurrence.unit_bits=60", "unit_bits"),
        ("cooccurrence.min_pair_count=-1", "min_pair_count"),
        ("cooccurrence.min_pair_count=.inf", "min_pair_count"),
        ("cooccurrence.min_pair_count=.nan", "min_pair_count"),
        ("train.regularization=.inf", "regularization"),
    ],
)
def test_values_out_of_range_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, [override])


@pytest.mark.parametrize("minimum", [0.1, 0.3, 0.7, 1.1, 2.2, 4.35, 0.2 + 0.1])
def test_the_least_count_is_compared_exactly_with_the_decimal_number(minimum):
    unit = semantics_of(CooccurrenceConfig(min_pair_count=minimum)).unit
    expected = math.ceil(Fraction(repr(minimum)) * unit)
    found = semantics_of(CooccurrenceConfig(min_pair_count=minimum)).minimum_units
    assert found == expected
    assert (found - 1) * 10**17 < int(Fraction(repr(minimum)) * unit * 10**17) <= found * 10**17


def test_a_pair_of_exactly_the_least_count_stays():
    """1.1 is 11 times 1/10, and 1.1 x 2520 in floating point is above 2772."""
    semantics = semantics_of(CooccurrenceConfig(window_left=0, window_right=10, min_pair_count=1.1))
    assert (semantics.unit, semantics.minimum_units) == (2520, 2772)


def test_a_least_count_that_no_pair_can_have_is_refused():
    with pytest.raises(ConfigError, match=r"min_pair_count is 1e\+300, and no count is as large"):
        semantics_of(CooccurrenceConfig(min_pair_count=1e300))


def test_no_window_and_a_half_diagonal_are_refused():
    with pytest.raises(ConfigError, match="both 0"):
        load_config(None, ["cooccurrence.window_left=0", "cooccurrence.window_right=0"])
    with pytest.raises(ConfigError, match="diagonal once needs a symmetric window"):
        load_config(None, ["cooccurrence.diagonal=once", "cooccurrence.window_left=3"])


def test_subsampling_keeps_the_share_it_says():
    counts = np.array([900_000, 90_000, 10_000])
    share = keep_thresholds(counts, 1e-2).astype(np.float64) / 2.0**64
    assert share == pytest.approx([np.sqrt(1e-2 / 0.9), np.sqrt(1e-2 / 0.09), 1.0], rel=1e-6)
    hashes = [occurrence_hash(key, position, 5) / 2**64 for key in range(20) for position in range(500)]
    assert np.mean(np.array(hashes) < share[0]) == pytest.approx(share[0], abs=0.02)


def test_subsampling_depends_on_document_position_and_seed_only():
    assert occurrence_hash(1, 2, 3) == occurrence_hash(1, 2, 3)
    assert len({occurrence_hash(*where) for where in [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4)]}) == 4
