from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from wals_spark.checkpoints.checkpoint import (
    check_tokenizer,
    checkpoint_tokenizer,
    embedding_values,
    locate_checkpoint,
    open_checkpoint,
    protected_ids,
)
from wals_spark.checkpoints.edit import base_of_checkpoint
from wals_spark.errors import InputError

EMBEDDING = "roberta.embeddings.word_embeddings.weight"


def edit_config(directory, **values):
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def edit_weights(directory, change):
    state = load_file(directory / "model.safetensors")
    state = {name: tensor.clone() for name, tensor in state.items()}
    change(state)
    save_file(state, directory / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("class_name", "embedding", "bias"),
    [
        ("RobertaForMaskedLM", EMBEDDING, "lm_head.bias"),
        ("RobertaModel", "embeddings.word_embeddings.weight", None),
        ("RobertaForSequenceClassification", EMBEDDING, None),
        ("RobertaForTokenClassification", EMBEDDING, None),
        ("RobertaForQuestionAnswering", EMBEDDING, None),
        ("XLMRobertaForMaskedLM", EMBEDDING, "lm_head.bias"),
        ("CamembertForMaskedLM", EMBEDDING, "lm_head.bias"),
        ("BertForMaskedLM", "bert.embeddings.word_embeddings.weight", "cls.predictions.bias"),
        ("BertModel", "embeddings.word_embeddings.weight", None),
        ("DistilBertForMaskedLM", "distilbert.embeddings.word_embeddings.weight", "vocab_projector.bias"),
    ],
)
def test_finds_embedding_and_head_bias_of_every_class(make_checkpoint, class_name, embedding, bias):
    found = open_checkpoint(str(make_checkpoint(class_name=class_name)))
    assert (found.architecture, found.embedding, found.head_bias) == (class_name, embedding, bias)
    assert found.hidden_size == 16


@pytest.mark.parametrize(("dtype", "name"), [("float16", "F16"), ("bfloat16", "BF16"), ("float32", "F32")])
def test_half_precision_is_read_exactly(make_checkpoint, dtype, name):
    directory = make_checkpoint(dtype=dtype)
    found = open_checkpoint(str(directory))
    expected = load_file(directory / "model.safetensors")[EMBEDDING]
    assert found.tensors[EMBEDDING].dtype == name
    assert np.array_equal(embedding_values(found), expected.float().numpy())


def test_sharded_safetensors_are_read(make_checkpoint):
    import transformers

    directory = make_checkpoint()
    whole = open_checkpoint(str(directory))
    model = transformers.AutoModelForMaskedLM.from_pretrained(directory)
    sharded = directory.parent / "sharded"
    model.save_pretrained(sharded, max_shard_size="10KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 1
    found = open_checkpoint(str(sharded))
    assert found.tensors.keys() == whole.tensors.keys()
    assert all(found.tensors[name].same_bytes(whole.tensors[name]) for name in whole.tensors)


def test_a_lost_shard_is_named(make_checkpoint):
    import transformers

    model = transformers.AutoModelForMaskedLM.from_pretrained(make_checkpoint())
    sharded = make_checkpoint("sharded")
    (sharded / "model.safetensors").unlink()
    model.save_pretrained(sharded, max_shard_size="10KB")
    lost = sorted(sharded.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(InputError, match=lost.name):
        open_checkpoint(str(sharded))


def test_a_bin_checkpoint_is_read_with_its_stale_decoder_dropped(make_checkpoint):
    directory = make_checkpoint()
    state = load_file(directory / "model.safetensors")
    torch.save(
        {**state, "lm_head.decoder.weight": state[EMBEDDING], "lm_head.decoder.bias": state["lm_head.bias"]},
        directory / "pytorch_model.bin",
    )
    whole = open_checkpoint(str(directory))
    (directory / "model.safetensors").unlink()
    found = open_checkpoint(str(directory))
    assert found.dropped == ("lm_head.decoder.weight", "lm_head.decoder.bias")
    assert {n: t.sha256 for n, t in found.tensors.items()} == {n: t.sha256 for n, t in whole.tensors.items()}


def test_a_bin_checkpoint_with_code_in_it_is_refused(make_checkpoint):
    class Payload:
        def __reduce__(self):
            return (print, ("this ran",))

    directory = make_checkpoint()
    (directory / "model.safetensors").unlink()
    torch.save({"x": Payload()}, directory / "pytorch_model.bin")
    with pytest.raises(InputError, match="runs no code"):
        open_checkpoint(str(directory))


def test_a_stale_decoder_that_differs_is_an_untied_head(make_checkpoint):
    directory = make_checkpoint()
    edit_weights(directory, lambda state: state.update({"lm_head.decoder.weight": state[EMBEDDING] + 1}))
    with pytest.raises(InputError, match="head is untied"):
        open_checkpoint(str(directory))


def test_an_untied_config_is_refused(make_checkpoint):
    with pytest.raises(InputError, match="tie_word_embeddings false"):
        open_checkpoint(str(make_checkpoint(tie_word_embeddings=False)))


def test_an_encoder_alone_has_no_head_to_be_untied(make_checkpoint, inject):
    from wals_spark.checkpoints.verify import verify_checkpoint

    base = make_checkpoint(class_name="RobertaModel", tie_word_embeddings=False)
    directory, manifest = inject(base)
    assert manifest["embedding"]["rows_changed"] > 100
    assert verify_checkpoint(directory, str(base)).failures == []


def test_an_embedding_resized_without_its_config_is_refused(make_checkpoint):
    directory = make_checkpoint()
    edit_config(directory, vocab_size=7)
    with pytest.raises(InputError, match="resized without its config"):
        open_checkpoint(str(directory))


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size"])
def test_a_config_without_a_size_is_not_called_resized(make_checkpoint, key):
    directory = make_checkpoint()
    config = json.loads((directory / "config.json").read_text())
    del config[key]
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=rf"config\.json has no {key}") as caught:
        open_checkpoint(str(directory))
    assert "resized" not in str(caught.value)


def test_a_head_that_was_not_resized_is_refused(make_checkpoint):
    directory = make_checkpoint()
    edit_weights(directory, lambda state: state.update({"lm_head.bias": state["lm_head.bias"][:-1]}))
    with pytest.raises(InputError, match="head was not resized"):
        open_checkpoint(str(directory))


def test_more_tokens_than_rows_is_refused(make_checkpoint):
    directory = make_checkpoint(vocab_size=100)
    with pytest.raises(InputError, match="resize_token_embeddings"):
        check_tokenizer(checkpoint_tokenizer(directory), open_checkpoint(str(directory)).vocab_size, "x")


def test_not_a_number_in_a_row_is_refused(make_checkpoint):
    directory = make_checkpoint()
    edit_weights(directory, lambda state: state[EMBEDDING][17].fill_(float("nan")))
    with pytest.raises(InputError, match=r"1 rows .* not finite \(first: \[17\]\)"):
        embedding_values(open_checkpoint(str(directory)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "remote code"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"architectures": None}, "no architectures"),
    ],
)
def test_configs_that_cannot_work_are_refused(make_checkpoint, values, message):
    directory = make_checkpoint()
    edit_config(directory, **values)
    with pytest.raises(InputError, match=message):
        open_checkpoint(str(directory))


def test_a_directory_without_weights_says_what_it_holds(make_checkpoint):
    directory = make_checkpoint()
    (directory / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no weights .*config\.json"):
        open_checkpoint(str(directory))


def test_a_directory_without_config_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no config\.json"):
        open_checkpoint(str(tmp_path))


def test_a_checkpoint_without_tokenizer_is_refused(make_checkpoint):
    directory = make_checkpoint()
    (directory / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        checkpoint_tokenizer(directory)


@pytest.mark.parametrize("source", ["/nowhere/at/all", "./nothing", "a/b/c"])
def test_a_path_that_is_not_there_is_refused(source):
    with pytest.raises(InputError, match="there is nothing at"):
        locate_checkpoint(source)


def test_a_hub_name_that_cannot_be_had_is_refused():
    with pytest.raises(InputError, match="nor to be had from the hub"):
        locate_checkpoint("no-such-user/no-such-model")


def test_special_reserved_and_padding_rows_are_protected(make_checkpoint):
    directory = make_checkpoint(vocab_size=403)
    tokenizer = checkpoint_tokenizer(directory)
    size = len(tokenizer.tokens)
    assert size <= 400
    found = protected_ids(tokenizer, open_checkpoint(str(directory)).config, 403)
    assert found.tolist() == [0, 1, 2, 3, 4, *range(size, 403)]


def test_reserved_tokens_of_roberta_are_protected(data):
    directory = data / "tokenizers" / "roberta-base"
    found = protected_ids(checkpoint_tokenizer(directory), {"pad_token_id": 1}, 50265)
    assert found.tolist() == [0, 1, 2, 3, 50260, 50261, 50262, 50263, 50264]


def test_the_source_is_never_written_to(make_checkpoint):
    directory = make_checkpoint()
    copy = directory.parent / "copy"
    shutil.copytree(directory, copy)
    found = open_checkpoint(str(directory))
    with pytest.raises(ValueError, match="read-only"):
        found.tensors[EMBEDDING].data[0] = 1
    assert (copy / "model.safetensors").read_bytes() == (directory / "model.safetensors").read_bytes()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model.", "model.", "student."])
def test_prefixes_of_wrappers_are_refused_by_name(make_checkpoint, prefix):
    from safetensors.torch import load_file, save_file

    directory = make_checkpoint()
    state = load_file(directory / "model.safetensors")
    wrapped = {prefix + name: value for name, value in state.items()}
    save_file(wrapped, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=rf"{prefix}.*save_pretrained"):
        open_checkpoint(str(directory))


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_a_file_of_a_training_loop_is_refused_by_its_key(make_checkpoint, key):
    import torch
    from safetensors.torch import load_file

    directory = make_checkpoint()
    state = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    torch.save({key: state, "epoch": 3}, directory / "pytorch_model.bin")
    with pytest.raises(InputError, match=f"lie under '{key}'.*save_pretrained"):
        open_checkpoint(str(directory))


@pytest.mark.parametrize("asked", [None, "v1.0", "refs/pr/3"])
def test_a_revision_of_the_hub_can_be_given_and_its_commit_is_recorded(make_checkpoint, tmp_path, monkeypatch, asked):
    import huggingface_hub

    commit = "0123456789abcdef0123456789abcdef01234567"
    made = make_checkpoint()
    (made / "LICENSE").write_text("Apache-2.0")
    (made / "1_Pooling").mkdir()
    (made / "modules.json").write_text("[]")
    cached = tmp_path / "snapshots" / commit
    shutil.copytree(made, cached)
    calls = []

    def download(name, *, revision, allow_patterns):
        calls.append((name, revision))
        return str(cached)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    source = "org/name" + (f"@{asked}" if asked else "")
    opened = open_checkpoint(source)
    assert calls == [("org/name", asked)]
    base = base_of_checkpoint(opened, source, np.zeros(0, np.int64))
    assert base.source["source"] == source
    assert (base.source["hub"], base.source["revision"]) == (True, commit)
    assert base.source["left_behind"] == ["1_Pooling", "modules.json"]
    assert base.companions()["LICENSE"] == b"Apache-2.0"
    assert base_of_checkpoint(open_checkpoint(str(made)), str(made), np.zeros(0, np.int64)).source["revision"] is None
