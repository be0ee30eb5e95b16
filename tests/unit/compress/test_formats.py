"""The three formats stand for one matrix, in stock and in factorised classes, in processes that know nothing else."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
import transformers
from fresh_process import FreshProcess

from wals_spark.checkpoints.checkpoint import FAMILIES, open_checkpoint
from wals_spark.checkpoints.safetensors_file import read_raw_tensors
from wals_spark.compress.compress_checkpoint import CompressionRequest, compress_checkpoint
from wals_spark.errors import InputError

EMBEDDING = "roberta.embeddings.word_embeddings.weight"
RANK = 5
LOAD = """
import json, os, sys, torch, transformers
import transformers.dynamic_module_utils
transformers.dynamic_module_utils.HF_MODULES_CACHE = os.environ["HF_MODULES_CACHE"]  # read by the import, long ago
transformers.logging.set_verbosity_error()
ids = torch.tensor([[0, 40, 41, 42, 300, 2], [0, 7, 2, 1, 1, 1]])

def load(directory, format_, head, save):
    torch.manual_seed(0)
    options = {"dense": {}, "plugin": {"variant": "factorised"}, "factorised": {"trust_remote_code": True}}[format_]
    model, info = getattr(transformers, head).from_pretrained(directory, output_loading_info=True, **options)
    model.eval()
    with torch.no_grad():
        out = model(ids, attention_mask=(ids != 1).long())
    first = out[0] if head != "AutoModel" else out.last_hidden_state
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    found = {
        "class": type(model).__name__,
        "dtype": str(first.dtype),
        "values": first.float().flatten().tolist(),
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"]),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    if outputs is not None:
        names = ["weight"] if hasattr(inputs, "weight") else ["coordinates", "basis", "mean"]
        found["tied"] = all(getattr(inputs, name) is getattr(outputs, name) for name in names)
        found["bias"] = float(outputs.bias.float().abs().sum())
    if save:
        model.save_pretrained(save)
    return found

results = []
for task in json.loads(sys.argv[1]):
    if task["format"] == "plugin":
        from wals_spark.compress import plugin
        plugin.register()
    results.append({head: load(task["directory"], task["format"], head, task["save"]) for head in task["heads"]})
print(json.dumps(results))
"""
HEADS = (
    "AutoModelForMaskedLM",
    "AutoModel",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
)
MASKED = HEADS[:1]


@pytest.fixture
def load(tmp_path):
    """Load folders one after the other in a fresh process and run each on two sentences."""

    def run(*folders, heads=HEADS, save=None):
        tasks = [
            {"directory": str(path), "format": format_, "heads": heads, "save": None if save is None else str(save)}
            for path, format_ in folders
        ]
        environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
        process = FreshProcess(LOAD, json.dumps(tasks), environment=environment)
        out, err = process.communicate(120)
        assert process.returncode == 0, err
        return json.loads(out.splitlines()[-1])

    return run


@pytest.fixture
def compressed(tmp_path):
    """Compress to one rank in a format; returns the folder."""

    def run(base, format_, **options):
        output = tmp_path / f"out-{format_}"
        compress_checkpoint(CompressionRequest(str(base), str(output), rank=RANK, format=format_, **options))
        return output

    return run


def biased(model):
    bias = next(value for name, value in model.named_parameters() if name.endswith("bias") and len(value) > 100)
    bias.normal_()


@pytest.mark.slow
@pytest.mark.parametrize("class_name", ["RobertaForMaskedLM", "BertForMaskedLM", "DistilBertForMaskedLM"])
def test_all_heads_give_the_logits_of_the_dense_checkpoint(make_checkpoint, compressed, load, class_name):
    base = make_checkpoint(class_name=class_name, edit=biased)
    folders = [(compressed(base, format_), format_) for format_ in ("dense", "factorised", "plugin")]
    dense, factorised, plugin = load(*folders)
    size = open_checkpoint(str(base)).vocab_size
    for head in HEADS:
        stock = dense[head]
        assert plugin[head]["class"] == stock["class"]
        assert plugin[head]["values"] == stock["values"], "the same matrix, so the same numbers"
        assert factorised[head]["class"] == "Factorised" + (head.removeprefix("AutoModel") or "Model")
        np.testing.assert_allclose(factorised[head]["values"], stock["values"], atol=2e-6)
        assert factorised[head]["missing"] == plugin[head]["missing"] == stock["missing"]
        assert stock["parameters"] - factorised[head]["parameters"] == 16 * size - (size + 16) * RANK - 16
    for found in (dense, plugin, factorised):
        assert found["AutoModelForMaskedLM"]["tied"] is True
        assert found["AutoModelForMaskedLM"]["missing"] == found["AutoModelForMaskedLM"]["unexpected"] == []
        assert found["AutoModelForMaskedLM"]["bias"] == dense["AutoModelForMaskedLM"]["bias"] > 10


SOURCES = ("RobertaModel", "RobertaForSequenceClassification", "BertModel", "DistilBertModel", "CamembertModel")


@pytest.mark.parametrize("class_name", SOURCES)
def test_heads_that_the_checkpoint_never_had_start_with_defined_values(make_checkpoint, compressed, load, class_name):
    base = make_checkpoint(class_name=class_name)
    names = ("dense", "factorised", "plugin")
    found = dict(zip(names, load(*((compressed(base, name), name) for name in names)), strict=True))
    for head in HEADS:
        assert found["factorised"][head]["missing"] == found["dense"][head]["missing"]
        for name in names:
            assert np.isfinite(found[name][head]["values"]).all()
            assert np.abs(found[name][head]["values"]).max() < 100
    assert all(found[name][MASKED[0]]["bias"] == 0 for name in names)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_kept_in_every_format(make_checkpoint, compressed, load, dtype):
    base = make_checkpoint(dtype=dtype)
    names = ("dense", "plugin", "factorised")
    results = load(*((compressed(base, name), name) for name in names), heads=MASKED)
    found = {name: result[MASKED[0]] for name, result in zip(names, results, strict=True)}
    assert {values["dtype"] for values in found.values()} == {f"torch.{dtype}"}
    assert found["plugin"]["values"] == found["dense"]["values"]
    step = {"float16": 2e-3, "bfloat16": 2e-2}[dtype]
    np.testing.assert_allclose(found["factorised"]["values"], found["dense"]["values"], atol=step)


def test_saving_after_the_plugin_gives_a_stock_checkpoint_of_the_same_bits(make_checkpoint, compressed, load, tmp_path):
    base = make_checkpoint()
    dense = compressed(base, "dense")
    load((compressed(base, "plugin"), "plugin"), heads=MASKED, save=tmp_path / "saved")
    ours, saved = (read_raw_tensors(path / "model.safetensors")[0] for path in (dense, tmp_path / "saved"))
    assert ours.keys() == saved.keys()
    assert all(ours[name].same_bytes(saved[name]) for name in ours)
    again, before = load((tmp_path / "saved", "dense"), (dense, "dense"), heads=MASKED)
    assert again == before


def test_saving_a_factorised_model_keeps_it_loadable_for_every_head(make_checkpoint, compressed, load, tmp_path):
    folder = compressed(make_checkpoint(), "factorised")
    (before,) = load((folder, "factorised"), heads=MASKED, save=tmp_path / "saved")
    (after,) = load((tmp_path / "saved", "factorised"))
    assert after[MASKED[0]] == before[MASKED[0]]
    assert set(after) == set(HEADS)
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert {"modeling_factorised.py", "model.safetensors"} <= names


def test_a_factorised_folder_needs_the_flag_and_has_a_model_type_of_its_own(make_checkpoint, compressed):
    folder = compressed(make_checkpoint(), "factorised")
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "factorised-roberta"
    assert config["factor_rank"] == RANK
    assert set(config["auto_map"]) == {"AutoConfig", *HEADS}
    with pytest.raises(ValueError, match="trust_remote_code"):
        transformers.AutoModel.from_pretrained(folder, trust_remote_code=False)


def test_the_plugins_file_is_not_loaded_by_accident(make_checkpoint, compressed):
    folder = compressed(make_checkpoint(), "plugin")
    with pytest.raises(OSError, match=r"model\.safetensors"):
        transformers.AutoModel.from_pretrained(folder)


@pytest.mark.parametrize("format_", ["dense", "factorised", "plugin"])
def test_only_safetensors_are_written_and_the_tokenizer_travels(make_checkpoint, compressed, format_):
    folder = compressed(make_checkpoint(), format_)
    assert not [path for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pkl", ".npy")]
    assert transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)("the cat")["input_ids"]


def test_factors_take_the_bytes_that_the_table_says(make_checkpoint, tmp_path):
    base = make_checkpoint()
    result = compress_checkpoint(CompressionRequest(str(base), str(tmp_path / "out"), rank=RANK, format="plugin"))
    before = sum(tensor.data.nbytes for tensor in open_checkpoint(str(base)).tensors.values())
    tensors = read_raw_tensors(tmp_path / "out" / "model.factorised.safetensors")[0]
    after = sum(tensor.data.nbytes for tensor in tensors.values())
    matrix = open_checkpoint(str(base)).tensors[EMBEDDING].data.nbytes
    assert after == before - matrix + result.choices[0].bytes


@pytest.fixture
def rules_restored():
    """The rules are the process's: what a test adds is taken away again."""
    from transformers import conversion_mapping as rules

    before = {kind: rules.get_checkpoint_conversion_mapping(kind) for kind in FAMILIES}
    yield
    for kind, known in before.items():
        rules.register_checkpoint_conversion_mapping(kind, known or [], overwrite=True)


def test_registering_twice_and_other_checkpoints_are_no_matter(make_checkpoint, rules_restored):
    from wals_spark.compress import plugin

    base = make_checkpoint()
    before = transformers.AutoModelForMaskedLM.from_pretrained(base).get_input_embeddings().weight
    plugin.register()
    plugin.register()
    model = transformers.AutoModelForMaskedLM.from_pretrained(base)
    assert torch.equal(model.get_input_embeddings().weight, before)
    model.save_pretrained(base.parent / "again")
    ours, saved = (read_raw_tensors(path / "model.safetensors")[0] for path in (base, base.parent / "again"))
    assert all(ours[name].same_bytes(saved[name]) for name in ours)


def test_a_class_without_a_factorised_counterpart_is_refused_before_any_work(make_checkpoint, tmp_path):
    base = make_checkpoint(class_name="RobertaForMultipleChoice")
    with pytest.raises(InputError, match="no factorised class"):
        compress_checkpoint(CompressionRequest(str(base), str(tmp_path / "out"), rank=RANK, format="factorised"))
    compress_checkpoint(CompressionRequest(str(base), str(tmp_path / "out"), rank=RANK, format="plugin"))
