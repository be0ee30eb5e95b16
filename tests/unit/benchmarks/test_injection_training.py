"""Continued pretraining as the arms of a comparison do it."""

from __future__ import annotations

import numpy as np
import torch
from injection_training import IGNORED, batches, masked_batch, train, training_steps


def test_an_epoch_takes_each_sequence_once():
    taken = np.concatenate(list(batches(np.zeros(48), 3, 0)))
    assert sorted(taken.tolist()) == list(range(48))


def test_steps_are_rounded_epochs():
    assert [training_steps(500, epochs) for epochs in (0.5, 1, 3)] == [16, 31, 94]


def test_masks_hide_fifteen_percent_behind_the_mask_token(make_sequences, special):
    sequences = make_sequences(20, 0)
    chosen = np.arange(16)
    inputs, labels, attended = masked_batch(sequences, chosen, special, 5, 1)
    hidden = labels != IGNORED
    assert (inputs[hidden] == special.mask).all()
    assert hidden.sum(1).tolist() == [max(1, round(0.15 * size)) for size in sequences.lengths[chosen]]
    restored = np.where(hidden, labels, inputs)
    assert (restored[0, 1 : sequences.lengths[0] + 1] == sequences.piece(0)).all()
    assert (attended.sum(1) == sequences.lengths[chosen] + 2).all()
    assert (inputs[~attended] == 1).all()


def test_another_step_has_other_masks(make_sequences, special):
    sequences = make_sequences(20, 0)
    one, other = (masked_batch(sequences, np.arange(8), special, seed, 1)[1] for seed in (1, 2))
    assert (one != other).any()


def test_embedding_only_training_moves_rows_and_head_bias_alone(tiny_model, make_sequences, special):
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    train(tiny_model, make_sequences(20, 0), special, 1, 0, embeddings_only=True)
    moved = {name for name, value in tiny_model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {
        "roberta.embeddings.word_embeddings.weight", "lm_head.decoder.weight", "lm_head.bias", "lm_head.decoder.bias",
    }  # fmt: skip
    assert all(parameter.requires_grad for parameter in tiny_model.parameters())


def test_the_same_seed_trains_the_same_weights(tiny_model, make_sequences, special):
    start = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    ends = []
    for seed in (3, 3, 4):
        tiny_model.load_state_dict(start)
        train(tiny_model, make_sequences(20, 0), special, 1, seed)
        ends.append(tiny_model.lm_head.dense.weight.detach().clone())
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])
