"""Results whose base loads the same way pass: the measure is how the base itself loads."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from wals_spark.checkpoints import reload_check
from wals_spark.checkpoints.reload import CLASSES, load_with_class
from wals_spark.checkpoints.reload_check import reload_in_new_process
from wals_spark.checkpoints.verify import verify_checkpoint


@pytest.fixture(autouse=True)
def reload_here(monkeypatch):
    """Reload in this process, which takes a second instead of ten; test_verify.py starts new ones."""

    def load(directory, module=None):
        return {name: load_with_class(str(directory), name) for name in CLASSES}

    monkeypatch.setattr(reload_check, "reload_in_new_process", load)


def with_extra(directory, tensors):
    state = load_file(directory / "model.safetensors")
    save_file({**state, **tensors}, directory / "model.safetensors", {"format": "pt"})


def with_config(directory, **values):
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def pretraining(make_checkpoint):
    """The layout of the original BERT releases: the head of next sentences beside the masked-LM class."""
    directory = make_checkpoint(class_name="BertForPreTraining")
    with_config(directory, architectures=["BertForMaskedLM"])
    return directory


def other_heads(make_checkpoint):
    directory = make_checkpoint()
    with_extra(directory, {"classifier.dense.weight": torch.ones(16, 16), "qa_outputs.bias": torch.ones(2)})
    return directory


def half_config(make_checkpoint):
    directory = make_checkpoint(edit=lambda model: model.lm_head.bias.normal_())
    with_config(directory, dtype="float16")
    return directory


def old_dtype_key(make_checkpoint):
    directory = make_checkpoint(class_name="BertForMaskedLM", dtype="bfloat16")
    config = json.loads((directory / "config.json").read_text())
    config.pop("dtype")
    (directory / "config.json").write_text(json.dumps({**config, "torch_dtype": "float32"}))
    return directory


def lacking_a_layer_norm(make_checkpoint):
    directory = make_checkpoint()
    state = load_file(directory / "model.safetensors")
    del state["lm_head.layer_norm.bias"]
    save_file(state, directory / "model.safetensors", {"format": "pt"})
    return directory


BASES = {
    "BertForPreTraining under BertForMaskedLM": pretraining,
    "tensors of other heads": other_heads,
    "BertForMultipleChoice": lambda make: make(class_name="BertForMultipleChoice"),
    "RobertaForMultipleChoice": lambda make: make(class_name="RobertaForMultipleChoice"),
    "BertForNextSentencePrediction": lambda make: make(class_name="BertForNextSentencePrediction"),
    "a config of float16 over weights of float32": half_config,
    "a config of float32 over weights of bfloat16": old_dtype_key,
}


@pytest.mark.parametrize("kind", BASES)
def test_what_loads_as_its_base_does_passes_with_and_without_it(make_checkpoint, inject, kind):
    base = BASES[kind](make_checkpoint)
    directory, _ = inject(base)
    assert verify_checkpoint(directory, str(base)).failures == []
    assert verify_checkpoint(directory).failures == []


def test_a_base_that_lacks_a_tensor_of_its_own_class_is_the_measure(make_checkpoint, inject):
    base = lacking_a_layer_norm(make_checkpoint)
    directory, _ = inject(base)
    report = verify_checkpoint(directory, str(base))
    assert report.failures == []
    (check,) = [check for check in report.checks if check.name == "reload AutoModelForMaskedLM"]
    assert check.detail == "loads as the base does, which lacks the same"
    (failure,) = verify_checkpoint(directory).failures
    assert "reload AutoModelForMaskedLM: missing keys: lm_head.layer_norm.bias" in failure


def test_a_tensor_that_only_the_result_lacks_is_lost(make_checkpoint, inject):
    base = make_checkpoint()
    directory, _ = inject(base)
    state = load_file(directory / "model.safetensors")
    del state["lm_head.layer_norm.bias"]
    save_file(state, directory / "model.safetensors", {"format": "pt"})
    failures = verify_checkpoint(directory, str(base)).failures
    assert "reload AutoModelForMaskedLM: missing keys: lm_head.layer_norm.bias" in failures


def test_a_way_through_a_hub_and_back_adds_files_that_are_no_change(make_checkpoint, inject):
    base = make_checkpoint()
    directory, _ = inject(base)
    (directory / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
    (directory / ".cache" / "huggingface" / "download").mkdir(parents=True)
    (directory / ".cache" / "huggingface" / "download" / "config.json.metadata").write_text("1\n")
    assert verify_checkpoint(directory, str(base), reload=False).failures == []
    assert transformers.AutoModel.from_pretrained(directory) is not None


def test_a_folder_that_does_not_load_says_why(tmp_path):
    found = reload_in_new_process(tmp_path / "nothing")
    assert all("error" in result for result in found.values())


@pytest.mark.parametrize("class_name", ["RobertaForMaskedLM", "BertForMaskedLM", "DistilBertForMaskedLM"])
def test_a_file_of_save_model_keeps_the_embedding_under_the_heads_name(make_checkpoint, inject, class_name):
    """Safetensors' own save_model drops all but one name of a shared tensor."""
    from safetensors.torch import save_model

    base = make_checkpoint(class_name=class_name)
    model = transformers.AutoModelForMaskedLM.from_pretrained(base)
    matrix = model.get_input_embeddings().weight.detach().clone()
    save_model(model, str(base / "model.safetensors"), {"format": "pt"})
    state = load_file(base / "model.safetensors")
    state = {name: value for name, value in state.items() if not name.endswith("word_embeddings.weight")}
    decoder = {"RobertaForMaskedLM": "lm_head.decoder.weight", "BertForMaskedLM": "cls.predictions.decoder.weight"}
    state[decoder.get(class_name, "vocab_projector.weight")] = matrix
    save_file(state, base / "model.safetensors", {"format": "pt"})
    directory, manifest = inject(base, "replace")
    assert verify_checkpoint(directory, str(base)).failures == []
    found = load_with_class(str(directory), "AutoModelForMaskedLM")
    assert (found["tied"], found["missing"]) == (True, [])
    assert manifest["embedding"]["rows_changed"] > 100
    again = transformers.AutoModelForMaskedLM.from_pretrained(directory).get_input_embeddings().weight.detach()
    assert not np.array_equal(again.numpy(), matrix.numpy())
