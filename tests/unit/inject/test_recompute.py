"""Forgeries with rewritten hashes: with the base at hand every one of them is found."""

from __future__ import annotations

import json

import numpy as np
import pytest

from wals_spark.checkpoints import artifact
from wals_spark.checkpoints.raw_tensor import (
    RawTensor,
    file_sha256,
    from_numpy,
    from_values,
    replace_rows,
    tensor_hashes,
)
from wals_spark.checkpoints.safetensors_file import read_raw_tensors, write_raw_tensors
from wals_spark.checkpoints.verify import read_manifest
from wals_spark.factors.store import Vectors
from wals_spark.inject.prepare import prepare_edit
from wals_spark.inject.verify import verify_injection
from wals_spark.inject.vocabulary.extend import extend_tokenizer
from wals_spark.tokenizer import load_tokenizer

EMBEDDING = "roberta.embeddings.word_embeddings.weight"
BIAS = "lm_head.bias"


def copied(path):
    tensors, metadata = read_raw_tensors(path)
    return {name: RawTensor(t.dtype, t.shape, t.data.copy()) for name, t in tensors.items()}, metadata


def forge(directory, base, tensors=None, proof=None, manifest=None):
    """Change tensors, recorded arrays and the manifest, then make every hash and figure right again."""
    written = read_manifest(directory)
    weights, metadata = copied(directory / "model.safetensors")
    recorded, kind = copied(directory / "factors.safetensors")
    if tensors:
        tensors(weights)
    if manifest:
        manifest(written)
    old, _ = read_raw_tensors(base / "model.safetensors")
    changes = artifact.row_changes(old[EMBEDDING], weights[EMBEDDING], recorded["origin"].data.view("<i8"))
    recorded |= from_numpy([("displacement", changes.displacement)])
    if proof:
        proof(recorded)
    write_raw_tensors(directory / "model.safetensors", weights, metadata)
    write_raw_tensors(directory / "factors.safetensors", recorded, kind)
    written["tensors"] = tensor_hashes(weights)
    written["embedding"] |= {
        "rows_changed": len(changes.changed),
        "changed_ids_sha256": artifact.ids_sha256(changes.changed),
    }
    written["files"] = {path.name: file_sha256(path) for path in directory.iterdir() if path.name != artifact.MANIFEST}
    written["sha256"] = artifact.manifest_sha256(written)
    (directory / "injection.json").write_text(json.dumps(written))


def failed(directory, base):
    assert verify_injection(directory, reload=False).failures == []  # hashes alone do not tell
    return {check.name for check in verify_injection(directory, str(base), reload=False).checks if not check.passed}


def with_row(row, values):
    return lambda tensors: tensors.update({EMBEDDING: replace_rows(tensors[EMBEDDING], np.array([row]), values)})


def with_entry(name, index, change):
    def apply(tensors):
        values = tensors[name].values().copy() if tensors[name].dtype == "F32" else None
        if values is None:
            values = tensors[name].data.view({"I64": "<i8", "F64": "<f8"}[tensors[name].dtype]).copy()
        values[index] = change(values[index])
        tensors[name] = from_values(values, "F32") if values.dtype == np.float32 else from_numpy([(name, values)])[name]

    return apply


@pytest.fixture
def blended(make_checkpoint, inject):
    base = make_checkpoint(edit=lambda model: model.lm_head.bias.copy_(model.lm_head.bias.new_tensor(range(400)) / 99))
    general = np.random.default_rng(3).integers(1, 1000, 400)
    path = base.parent / "general.csv"
    path.write_text("token_id,count\n" + "".join(f"{i},{n}\n" for i, n in enumerate(general)))
    directory, _ = inject(base, inject__head_bias=0.5, inject__exposure=str(path))
    return base, directory


@pytest.fixture
def extended(make_checkpoint, make_config, tmp_path):
    base = make_checkpoint(edit=lambda model: model.lm_head.bias.copy_(model.lm_head.bias.new_tensor(range(400)) / 99))
    old = load_tokenizer(str(base))
    words = [old.tokenizer.encode(f" {word}", add_special_tokens=False).tokens for word in ("dogsails", "catrivers")]
    content, _ = extend_tokenizer(json.loads((base / "tokenizer.json").read_text()), words)
    (tmp_path / "extended").mkdir()
    (tmp_path / "extended" / "tokenizer.json").write_text(json.dumps(content))
    return base, written(make_config, tmp_path, base, "extend", tmp_path / "extended", extend_rows="subtokens")


@pytest.fixture
def trimmed(make_checkpoint, make_config, tmp_path):
    base = make_checkpoint(edit=lambda model: model.lm_head.bias.copy_(model.lm_head.bias.new_tensor(range(400)) / 99))
    return base, written(make_config, tmp_path, base, "trim", base)


def written(make_config, tmp_path, base, mode, tokenizer, **inject):
    tokens = load_tokenizer(str(tokenizer)).tokens
    counts = np.random.default_rng(0).integers(0, 60, len(tokens)) * (np.arange(len(tokens)) % 3 > 0)
    matrix = np.random.default_rng(1).standard_normal((len(tokens), 6)).astype(np.float32)
    settings = {f"inject__{key}": value for key, value in inject.items()}
    config = make_config(
        inject__mode=mode, inject__checkpoint=str(base), vocabulary__tokenizer=str(tokenizer), **settings
    )
    edit = prepare_edit(config, Vectors(list(tokens), counts, matrix, np.zeros(len(tokens), np.float32)))
    described = {"mode": mode, "parameters": {"seed": 1, **config.inject.result_keys()}, "factors": None}
    (tmp_path / "out").mkdir()
    artifact.write_artifact(tmp_path / "out", *edit, described)
    return tmp_path / "out"


@pytest.mark.parametrize("made", ["blended", "extended", "trimmed"])
def test_an_honest_result_passes_and_says_what_was_recomputed(made, request):
    base, directory = request.getfixturevalue(made)
    report = verify_injection(directory, str(base), reload=False)
    assert report.failures == []
    names = {check.name for check in report.checks}
    assert {"files of the base", "protected by the base", "row origins", "shares", "computed rows", "gate"} <= names


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounding_of_half_precision_is_no_forgery(make_checkpoint, inject, dtype):
    base = make_checkpoint(dtype=dtype)
    directory, _ = inject(base, inject__head_bias=0.5, inject__exposure="rank")
    assert verify_injection(directory, str(base), reload=False).failures == []


def test_an_old_row_changed_in_extend(extended):
    base, directory = extended
    forge(directory, base, with_row(100, np.full((1, 16), 0.01)))
    assert "computed rows" in failed(directory, base)


def test_an_old_bias_changed_in_extend(extended):
    base, directory = extended
    forge(directory, base, with_entry(BIAS, 100, lambda value: value + np.float32(0.01)))
    assert failed(directory, base) == {"computed head bias"}


def test_a_new_row_that_is_not_what_the_mode_computes(extended):
    base, directory = extended
    forge(directory, base, with_row(401, np.full((1, 16), 0.01)))
    assert "computed rows" in failed(directory, base)


def test_a_kept_row_changed_in_trim(trimmed):
    base, directory = trimmed
    forge(directory, base, with_row(60, np.full((1, 16), 0.01)))
    assert "computed rows" in failed(directory, base)


def test_rows_permuted_in_trim(trimmed):
    base, directory = trimmed

    def swap(name):
        def apply(tensors):
            rows = tensors[name].rows.copy()
            rows[[60, 61]] = rows[[61, 60]]
            tensors[name] = RawTensor(tensors[name].dtype, tensors[name].shape, rows.reshape(-1))

        return apply

    def proof(recorded):
        swap("origin")(recorded)

    def tensors(weights):
        swap(EMBEDDING)(weights)
        swap(BIAS)(weights)

    old, _ = copied(directory / "factors.safetensors")
    proof(old)
    write_raw_tensors(directory / "factors.safetensors", old, {})
    forge(directory, base, tensors)
    assert "row origins" in failed(directory, base)


@pytest.mark.parametrize("made", ["blended", "extended", "trimmed"])
def test_entries_swapped_in_tokenizer_json(made, request):
    base, directory = request.getfixturevalue(made)
    content = json.loads((directory / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[60:62]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (directory / "tokenizer.json").write_text(json.dumps(content))
    forge(directory, base)
    assert failed(directory, base) & {"files of the base", "tokenizer of the base", "recomputed"}


@pytest.mark.parametrize("made", ["blended", "extended", "trimmed"])
def test_another_activation_in_config_json(made, request):
    base, directory = request.getfixturevalue(made)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    forge(directory, base)
    assert failed(directory, base) == {"files of the base"}
    report = verify_injection(directory, str(base), reload=False)
    assert "files of the base: config.json: hidden_act differ" in report.failures


def test_the_mask_row_changed_with_a_shortened_list_of_protected_rows(blended):
    base, directory = blended

    def shorten(manifest):
        manifest["embedding"]["protected"].remove(4)

    share = with_entry("share", 4, lambda _: np.float32(0.3))
    forge(directory, base, with_row(4, np.full((1, 16), 0.001)), share, shorten)
    assert {"protected by the base", "computed rows", "shares"} <= failed(directory, base)


def test_an_unmoved_row_with_a_forged_share(blended):
    base, directory = blended
    forge(directory, base, proof=with_entry("share", 399, lambda _: np.float32(0.5)))
    assert failed(directory, base) == {"shares"}


def test_a_head_bias_of_fifty_more(blended):
    base, directory = blended
    forge(directory, base, with_entry(BIAS, 100, lambda value: value + np.float32(50)))
    assert failed(directory, base) == {"computed head bias"}


def test_a_head_bias_through_counts_of_no_text(blended):
    """Counts are recorded, so a forger may change them; frequencies of no text are all that this can reach."""
    base, directory = blended
    huge = 4 * 10**18

    def counts(recorded):
        with_entry("counts", 100, lambda _: huge)(recorded)
        with_entry("corpus_counts", 100, lambda _: float(huge))(recorded)

    forge(directory, base, proof=counts)
    assert "frequencies" in failed(directory, base)


def test_strengths_that_nobody_asked_for(blended):
    base, directory = blended

    def stronger(manifest):
        manifest["fit"]["strengths"]["head_bias"] = 1.0

    forge(directory, base, manifest=stronger)
    assert {"strengths", "computed head bias"} <= failed(directory, base)


def test_a_gate_that_did_not_pass(blended):
    base, directory = blended

    def better(manifest):
        manifest["gate"]["gain"] += 0.1

    forge(directory, base, manifest=better)
    assert failed(directory, base) == {"gate"}


def test_recorded_inputs_that_are_gone_are_a_failure_and_no_way_round(blended):
    base, directory = blended
    forge(directory, base, proof=lambda recorded: recorded.pop("exposure"))
    assert failed(directory, base) == {"recomputed"}
