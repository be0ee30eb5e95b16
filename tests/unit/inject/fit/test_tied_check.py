"""The strength of an edit, chosen with the encoder run again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from inject_models import make_checkpoint

from wals_spark.checkpoints import checkpoint as ckpt
from wals_spark.checkpoints.edit import EmbeddingEdit
from wals_spark.inject.fit.tied_check import choose_strength, scaled_edit
from wals_spark.mlm.data import special_ids
from wals_spark.mlm.masking import Maskings
from wals_spark.mlm.text_sequences import cut_documents
from wals_spark.tokenizer import load_tokenizer

__all__ = ["make_checkpoint"]


@pytest.fixture
def case(make_checkpoint):
    """A checkpoint, held-out sequences, and an edit of the head bias towards their tokens."""
    directory = make_checkpoint()
    opened = ckpt.open_checkpoint(str(directory))
    generator = np.random.default_rng(0)
    tokens = np.minimum(5 + generator.geometric(0.1, 900), 299).astype(np.int32)
    sequences = cut_documents(tokens, np.arange(0, 901, 30), np.arange(30, dtype=np.uint64), 32)
    E, b = ckpt.embedding_values(opened), opened.tensors[opened.head_bias].values().astype(np.float64)
    moved = b.copy()
    moved += np.log(np.bincount(tokens, minlength=len(b)) + 0.5)
    ids = np.arange(10, 14)
    edit = EmbeddingEdit(ids, E[ids], moved, np.zeros(len(E), np.float32), {})
    special = special_ids(load_tokenizer(str(directory)))
    return opened.directory, edit, sequences, special, Maskings(1, 0.15, 0), E, b


def test_an_edit_that_helps_stays_whole(case):
    directory, edit, sequences, special, maskings, *_ = case
    found = choose_strength(directory, edit, sequences, special, maskings)
    assert found.strength == 1.0
    assert found.gain.low > 0
    assert found.edit is edit
    assert found.gain.value == pytest.approx(found.losses[0.0] - found.losses[1.0])


def test_changes_that_are_too_large_are_scaled_down(case):
    directory, edit, sequences, special, maskings, _, b = case
    large = replace(edit, head_bias=b + 4 * (edit.head_bias - b))
    found = choose_strength(directory, large, sequences, special, maskings)
    assert found.strength == 0.25
    np.testing.assert_allclose(found.edit.head_bias, edit.head_bias)
    assert found.losses[0.25] < found.losses[0.5] < found.losses[1.0]


def test_harm_at_every_strength_has_no_gain(case):
    directory, edit, sequences, special, maskings, _, b = case
    found = choose_strength(directory, replace(edit, head_bias=2 * b - edit.head_bias), sequences, special, maskings)
    assert found.gain.high < 0
    assert found.strength == 0.125


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 2.0])
def test_a_scaled_edit_moves_by_its_share(case, strength):
    _, edit, *_, E, b = case
    edit = replace(edit, rows=edit.rows + 1)
    scaled = scaled_edit(edit, E[edit.ids], b, strength)
    np.testing.assert_allclose(scaled.rows, E[edit.ids] + strength, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scaled.head_bias, b + strength * (edit.head_bias - b))
