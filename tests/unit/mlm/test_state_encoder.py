"""States against a model called one sequence at a time with the head's layers by their names."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from oracles.states import masks_reference, states_reference

from wals_spark.checkpoints.checkpoint import FAMILIES
from wals_spark.errors import InputError
from wals_spark.mlm import state_encoder
from wals_spark.mlm.data import special_ids
from wals_spark.mlm.hidden_states import MaskedStates
from wals_spark.mlm.loss import load_masked_lm
from wals_spark.mlm.masking import Maskings
from wals_spark.mlm.positions import longest_sequence
from wals_spark.mlm.state_encoder import StateEncoder, state_bytes
from wals_spark.mlm.text_sequences import TextSequences, cut_documents, no_sequences
from wals_spark.tokenizer import load_tokenizer

CLASSES = {family.classes + "ForMaskedLM" for family in FAMILIES.values()}
NAMES = [field.name for field in fields(MaskedStates)]
MASKINGS = Maskings(3, 0.2, seed=5)


@pytest.fixture
def load(make_checkpoint):
    """A tiny model of a class and its special ids."""

    def make(class_name="RobertaForMaskedLM", **values):
        directory = make_checkpoint(class_name=class_name, **values)
        return load_masked_lm(str(directory)), special_ids(load_tokenizer(str(directory)))

    return make


def text(sizes=(20, 5, 30, 2, 12), size=300):
    generator = np.random.default_rng(3)
    documents = [generator.integers(5, size, n) for n in sizes]
    offsets = np.cumsum([0, *sizes]).astype(np.int64)
    keys = np.arange(len(sizes), dtype=np.uint64) + np.uint64(2**63)
    return cut_documents(np.concatenate(documents).astype(np.int32), offsets, keys, 34)


def assert_close(found, expected):
    for name in ("target", "document"):
        assert np.array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_allclose(found.hidden.astype(float), expected.hidden.astype(float), rtol=2e-3, atol=1e-3)
    for name in ("log_partition", "target_logit"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=2e-3)


@pytest.mark.parametrize("class_name", sorted(CLASSES))
def test_states_of_every_family_are_what_the_heads_layers_give(load, class_name):
    model, special = load(class_name)
    sequences = text()
    found = StateEncoder(model, special, candidates=7, batch_size=4).states(sequences, MASKINGS)
    pieces = [(int(sequences.document[i]), sequences.piece(i).tolist()) for i in range(len(sequences))]
    names = zip(sequences.document.tolist(), sequences.start.tolist(), strict=True)
    masks = [
        masks_reference(tokens, set(special.all), name, 3, 0.2, 5)
        for (_, tokens), name in zip(pieces, names, strict=True)
    ]
    expected = states_reference(model, special, pieces, masks, 7)
    assert len(found) == len(expected["target"]) == 3 * (4 + 1 + 6 + 1 + 2)
    assert found.target.tolist() == expected["target"].tolist()
    assert found.document.tolist() == expected["document"].tolist()
    np.testing.assert_allclose(found.hidden.astype(float), expected["hidden"].astype(float), rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose(found.log_partition, expected["log_partition"], atol=2e-3)
    np.testing.assert_allclose(found.target_logit, expected["target_logit"], atol=2e-3)
    assert (found.candidates == expected["candidates"]).mean() > 0.95


def test_logits_are_those_of_the_stored_states(load):
    model, special = load()
    found = StateEncoder(model, special, candidates=400).states(text(), MASKINGS)
    decoder = model.get_output_embeddings()
    weight, bias = decoder.weight.detach().double().numpy(), decoder.bias.detach().double().numpy()
    logits = found.hidden.astype(np.float64) @ weight.T + bias
    assert np.abs(found.target_logit - logits[np.arange(len(found)), found.target]).max() < 1e-5
    largest = np.take_along_axis(logits, found.candidates.astype(np.int64), 1)
    assert (np.diff(largest, axis=1) <= 1e-5).all()
    assert np.abs(found.log_partition - np.log(np.exp(logits).sum(1))).max() < 1e-5
    assert found.candidates.shape[1] == len(bias)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 100])
def test_states_do_not_depend_on_the_batch(load, batch_size):
    model, special = load()
    sequences = text()
    whole = StateEncoder(model, special, batch_size=3).states(sequences, MASKINGS)
    assert_close(StateEncoder(model, special, batch_size=batch_size).states(sequences, MASKINGS), whole)
    alone = StateEncoder(model, special, batch_size=batch_size).states(sequences.take(np.array([1])), MASKINGS)
    first = 3 * 4
    assert_close(alone, whole.take(np.arange(first, first + len(alone))))


def test_logits_in_small_blocks_are_the_same(load, monkeypatch):
    model, special = load()
    whole = StateEncoder(model, special).states(text(), MASKINGS)
    monkeypatch.setattr(state_encoder, "LOGIT_BYTES", 1)
    blocks = StateEncoder(model, special).states(text(), MASKINGS)
    assert np.abs(blocks.log_partition - whole.log_partition).max() < 1e-5
    assert np.array_equal(blocks.hidden, whole.hidden)


def test_the_same_call_gives_the_same_bytes_and_leaves_the_model_as_it_was(load):
    model, special = load()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    one, other = (StateEncoder(model, special).states(text(), MASKINGS) for _ in range(2))
    assert all(getattr(one, name).tobytes() == getattr(other, name).tobytes() for name in NAMES)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_no_text_gives_no_states_and_only_special_tokens_none_either(load):
    model, special = load()
    encoder = StateEncoder(model, special)
    assert len(encoder.states(no_sequences(), MASKINGS)) == 0
    only = TextSequences(np.full(4, 3, np.int32), np.array([0, 4]), np.zeros(1, np.uint64), np.zeros(1, np.int64))
    assert len(encoder.states(only, MASKINGS)) == 0


def test_progress_counts_forward_passes(load):
    model, special = load()
    told = []
    StateEncoder(model, special, batch_size=4).states(text(), MASKINGS, told.append)
    assert told == [4, 8, 12, 15]


@pytest.mark.parametrize(("precision", "error"), [("tf32", 0.0), ("bf16", 0.05)])
def test_lower_precisions_give_nearly_the_same(load, precision, error):
    model, special = load()
    exact = StateEncoder(model, special).states(text(), MASKINGS)
    found = StateEncoder(model, special, precision=precision).states(text(), MASKINGS)
    difference = np.abs(found.hidden.astype(float) - exact.hidden.astype(float))
    assert difference.max() <= error * np.abs(exact.hidden.astype(float)).max()
    assert np.abs(found.base_loss - exact.base_loss).max() <= error


def scaled_head(factor):
    def edit(model):
        model.lm_head.layer_norm.weight.mul_(factor)

    return edit


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (1e6, r"of \d+ masked positions of a batch reach [\d.e+]+, beyond the 65,504 of float16"),
        (float("nan"), r"the states of \d+ of \d+ masked positions of a batch are NaN or infinite"),
        (float("inf"), "NaN or infinite"),
    ],
)
def test_states_that_float16_cannot_hold_are_refused(load, factor, message):
    model, special = load(edit=scaled_head(factor))
    with pytest.raises(InputError, match=message):
        StateEncoder(model, special).states(text(), MASKINGS)


def test_ids_of_another_tokenizer_and_sequences_beyond_the_positions_are_refused(load):
    model, special = load()
    encoder = StateEncoder(model, special)
    with pytest.raises(InputError, match=r"token id 9\d\d is outside the model's vocabulary of 4"):
        encoder.states(text(size=1000), MASKINGS)
    assert longest_sequence(model.config.to_dict()) == 38
    long = cut_documents(np.full(60, 9, np.int32), np.array([0, 60]), np.zeros(1, np.uint64), 60)
    with pytest.raises(InputError, match="sequences of 60 tokens do not fit the model's 38 positions"):
        encoder.states(long, MASKINGS)


def test_a_model_without_a_head_is_refused():
    from transformers import RobertaConfig, RobertaModel

    config = RobertaConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    model = RobertaModel(config)
    with pytest.raises(InputError, match="RobertaModel has no masked-LM head"):
        StateEncoder(model, None)


def test_a_head_whose_logits_are_not_its_last_map_is_refused(load, monkeypatch):
    model, special = load()
    forward = model.lm_head.forward
    monkeypatch.setattr(model.lm_head, "forward", lambda x, **kwargs: 2 * forward(x, **kwargs))
    with pytest.raises(InputError, match="its logits are not its output embedding"):
        StateEncoder(model, special)


def test_bytes_of_a_position_are_below_two_kilobytes_for_bert_base(load):
    model, special = load()
    found = StateEncoder(model, special, candidates=64).states(text(), MASKINGS)
    assert sum(getattr(found, name).nbytes for name in NAMES) == len(found) * state_bytes(16)
    assert state_bytes(768) == 1812
