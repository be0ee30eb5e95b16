"""Figures of a comparison's arms on cases made by hand."""

from __future__ import annotations

import injection_arms
import numpy as np
import pytest
from injection_arms import accuracy, band_names, gain_by_band, parse_arm

from wals_spark.errors import InputError
from wals_spark.mlm.hidden_states import MaskedStates


@pytest.fixture
def states():
    """Four targets of two documents; the base's losses are 4, 3, 2, 1."""
    candidates = np.array([[1, 5], [2, 9], [8, 3], [8, 9]], np.int32)
    return MaskedStates(
        np.zeros((4, 2), np.float16),
        np.array([1, 2, 3, 4], np.int32),
        np.array([7, 7, 8, 8], np.uint64),
        candidates,
        np.array([4, 3, 2, 1], np.float32),
        np.zeros(4, np.float32),
    )


def test_bands_have_the_names_of_their_counts():
    assert band_names() == ("0", "1-4", "5-19", "20-99", "100+")


def test_gain_by_band_is_the_mean_over_the_band_s_targets(states):
    found = gain_by_band(states, np.array([3.0, 3.5, 1.0, 2.0]), np.array([9, 0, 4, 5, 3]))
    values = {name: (band["value"], band["targets"], band["documents"]) for name, band in found.items()}
    assert values == {
        "0": (1.0, 1, 1), "1-4": (-0.75, 2, 2), "5-19": (1.0, 1, 1), "20-99": (None, 0, 0), "100+": (None, 0, 0),
    }  # fmt: skip


def test_accuracy_counts_targets_among_the_likeliest(states):
    assert accuracy(states, 1) == 0.5
    assert accuracy(states, 2) == 0.75


def test_half_an_epoch_costs_one_and_a_half_passes():
    assert parse_arm("full-0.5").forward_equivalents == 1.5
    assert parse_arm("fit-8").forward_equivalents == 8


def test_a_head_with_rows_of_its_own_is_refused(tiny_model):
    import torch

    tiny_model.lm_head.decoder.weight = torch.nn.Parameter(tiny_model.lm_head.decoder.weight.detach().clone())
    with pytest.raises(InputError, match="token embeddings"):
        injection_arms.Comparison(tiny_model, {}, None)
