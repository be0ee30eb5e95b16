"""Traps of transformers 5 that silently lose an injection: each pinned down, and our writer shown to avoid it.

A test named ``trap_...`` states what transformers does today; when one fails after an upgrade, the trap has
changed and the writer must be reviewed.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrize

from wals_spark.checkpoints.checkpoint import open_checkpoint
from wals_spark.checkpoints.reload import load_with_class
from wals_spark.checkpoints.safetensors_file import read_raw_tensors
from wals_spark.errors import InputError

EMBEDDING = "roberta.embeddings.word_embeddings.weight"


@pytest.fixture
def model(make_checkpoint):
    return transformers.AutoModelForMaskedLM.from_pretrained(make_checkpoint())


class Factorised(nn.Module):
    """E = coordinates @ basis, in place of nn.Embedding."""

    def __init__(self, rows, rank, d):
        super().__init__()
        self.coordinates = nn.Parameter(torch.randn(rows, rank))
        self.basis = nn.Parameter(torch.randn(rank, d))

    def forward(self, ids):
        return self.coordinates[ids] @ self.basis


def matrix(directory):
    return transformers.AutoModelForMaskedLM.from_pretrained(directory).get_input_embeddings().weight.detach()


def test_trap_a_custom_module_in_a_stock_model_reloads_as_the_original(model, tmp_path):
    original = model.get_input_embeddings().weight.detach().clone()
    model.roberta.embeddings.word_embeddings = Factorised(*original.shape[:1], 4, original.shape[1])
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(matrix(tmp_path / "saved"), original)


def test_trap_setting_input_embeddings_alone_unties_the_head(model, tmp_path):
    new = nn.Embedding.from_pretrained(model.get_input_embeddings().weight.detach() + 1, freeze=False, padding_idx=1)
    model.set_input_embeddings(new)
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    model.save_pretrained(tmp_path / "saved")
    again = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "saved")
    assert not torch.equal(again.get_output_embeddings().weight, again.get_input_embeddings().weight)


def test_such_an_untied_checkpoint_is_refused(model, make_checkpoint):
    directory = make_checkpoint("untied")
    new = nn.Embedding.from_pretrained(model.get_input_embeddings().weight.detach() + 1, freeze=False, padding_idx=1)
    model.set_input_embeddings(new)
    model.save_pretrained(directory)
    with pytest.raises(InputError, match="head is untied"):
        open_checkpoint(str(directory))


def test_trap_an_untied_config_loses_the_head_bias(make_checkpoint):
    directory = make_checkpoint(edit=lambda model: model.lm_head.bias.fill_(3.0))
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tie_word_embeddings": False}))
    found = transformers.AutoModelForMaskedLM.from_pretrained(directory)
    assert not torch.equal(found.get_output_embeddings().bias, torch.full((len(found.lm_head.bias),), 3.0))


def test_trap_a_stale_decoder_beside_a_changed_embedding_unties_the_reload(make_checkpoint):
    directory = make_checkpoint()
    state = load_file(directory / "model.safetensors")
    state = {**state, "lm_head.decoder.weight": state[EMBEDDING].clone(), EMBEDDING: state[EMBEDDING] + 1}
    save_file(state, directory / "model.safetensors", {"format": "pt"})
    found = load_with_class(str(directory), "AutoModelForMaskedLM")
    assert found["tied"] is False


def test_trap_a_missing_embedding_is_restored_from_a_stale_decoder(make_checkpoint):
    directory = make_checkpoint()
    state = load_file(directory / "model.safetensors")
    stale = state.pop(EMBEDDING)
    save_file({**state, "lm_head.decoder.weight": stale}, directory / "model.safetensors", {"format": "pt"})
    assert torch.equal(matrix(directory), stale)
    found = open_checkpoint(str(directory))
    assert np.array_equal(found.tensors[found.embedding].values(), stale.numpy())


def test_trap_loading_an_embedding_from_a_matrix_freezes_it_and_forgets_the_padding():
    made = nn.Embedding.from_pretrained(torch.ones(3, 2))
    assert not made.weight.requires_grad
    assert made.padding_idx is None


def test_our_checkpoint_reloads_trainable_with_its_padding_index(make_checkpoint, inject):
    directory, _ = inject(make_checkpoint())
    inputs = transformers.AutoModelForMaskedLM.from_pretrained(directory).get_input_embeddings()
    assert type(inputs) is nn.Embedding
    assert inputs.padding_idx == 1
    assert inputs.weight.requires_grad


def test_trap_safe_serialization_is_swallowed(model, tmp_path):
    model.save_pretrained(tmp_path / "saved", safe_serialization=False)
    assert (tmp_path / "saved" / "model.safetensors").exists()
    assert not (tmp_path / "saved" / "pytorch_model.bin").exists()


def test_trap_a_parametrised_embedding_must_not_be_saved_unmerged(model, tmp_path):
    class LowRank(nn.Module):
        def __init__(self, rows, d):
            super().__init__()
            self.left, self.right = nn.Parameter(torch.ones(rows, 2)), nn.Parameter(torch.ones(2, d))

        def forward(self, weight):
            return weight + self.left @ self.right

    inputs = model.get_input_embeddings()
    parametrize.register_parametrization(inputs, "weight", LowRank(*inputs.weight.shape))
    merged = inputs.weight.detach().clone()
    with pytest.raises(ValueError, match="weight"):
        model.tie_weights()
    parametrize.remove_parametrizations(inputs, "weight", leave_parametrized=True)
    model.tie_weights()
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(matrix(tmp_path / "saved"), merged)


def test_tied_weights_are_declared_as_a_mapping():
    assert transformers.RobertaForMaskedLM._tied_weights_keys == {
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    }


def test_a_saved_tied_model_holds_the_matrix_and_the_bias_once(make_checkpoint):
    names = read_raw_tensors(make_checkpoint() / "model.safetensors")[0]
    assert EMBEDDING in names
    assert "lm_head.bias" in names
    assert not any(name.startswith("lm_head.decoder") for name in names)


def test_half_precision_loads_as_half_by_default(make_checkpoint, inject):
    directory, _ = inject(make_checkpoint(dtype="float16"))
    assert matrix(directory).dtype == torch.float16


def test_metadata_of_the_file_survives_and_does_not_hinder_loading(make_checkpoint, inject):
    base = make_checkpoint()
    state = load_file(base / "model.safetensors")
    save_file(state, base / "model.safetensors", {"format": "pt", "origin": "here"})
    directory, _ = inject(base)
    assert read_raw_tensors(directory / "model.safetensors")[1] == {"format": "pt", "origin": "here"}
    assert load_with_class(str(directory), "AutoModelForMaskedLM")["missing"] == []


def test_trap_the_default_config_is_not_roberta_base():
    config = transformers.RobertaConfig()
    assert (config.max_position_embeddings, config.type_vocab_size) == (512, 2)


def test_init_keeps_every_value_of_the_given_config(make_checkpoint, inject):
    base = make_checkpoint(max_position_embeddings=33, type_vocab_size=2, layer_norm_eps=1e-4, initializer_range=0.03)
    directory, _ = inject(base, "init")
    given, kept = (json.loads((path / "config.json").read_text()) for path in (base, directory))
    for key in ("max_position_embeddings", "type_vocab_size", "layer_norm_eps", "initializer_range", "pad_token_id"):
        assert kept[key] == given[key]
    found = load_with_class(str(directory), "AutoModelForMaskedLM")
    assert (found["missing"], found["unexpected"], found["tied"]) == ([], [], True)


def test_trap_the_question_answering_pipeline_is_gone():
    assert "question-answering" not in transformers.pipelines.PIPELINE_REGISTRY.get_supported_tasks()


def test_the_padding_row_is_as_it_was(make_checkpoint, inject):
    base = make_checkpoint()
    directory, _ = inject(base, "replace")
    assert np.array_equal(
        open_checkpoint(str(directory)).tensors[EMBEDDING].rows[1],
        open_checkpoint(str(base)).tensors[EMBEDDING].rows[1],
    )


def test_nothing_pickled_is_written(make_checkpoint, inject):
    base = make_checkpoint()
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    directory, _ = inject(base)
    assert not [path.name for path in directory.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".npy")]


def test_without_any_change_the_tensors_are_the_same_to_the_bit(make_checkpoint, inject):
    from wals_spark.checkpoints.edit import TokenFactors

    base = make_checkpoint()
    size = open_checkpoint(str(base)).vocab_size
    factors = TokenFactors(np.random.default_rng(0).standard_normal((size, 4)).astype(np.float32), np.full(size, 50))
    directory, manifest = inject(base, factors=factors, inject__force=True, inject__b_max=0.0)
    assert manifest["embedding"]["rows_changed"] == 0
    old, new = open_checkpoint(str(base)).tensors, open_checkpoint(str(directory)).tensors
    assert old.keys() == new.keys()
    assert all(old[name].same_bytes(new[name]) for name in old)
