"""Injections with a domain pack, computed again: the rounding of the pack is allowed, nothing more."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from wals_spark.checkpoints.artifact import ids_sha256, manifest_sha256, row_changes
from wals_spark.checkpoints.checkpoint import open_checkpoint
from wals_spark.checkpoints.domain_pack import PACK_FILE, read_pack, sealed_pack, write_pack
from wals_spark.checkpoints.edit import apply_edit, base_of_checkpoint
from wals_spark.checkpoints.pack_application import apply_packs
from wals_spark.checkpoints.pack_sum import edit_of_packs, scaled_packs
from wals_spark.checkpoints.raw_tensor import file_sha256, from_numpy, tensor_hashes
from wals_spark.checkpoints.safetensors_file import read_raw_tensors, write_raw_tensors
from wals_spark.checkpoints.verify import read_manifest, verify_checkpoint
from wals_spark.inject.verify import verify_injection

EMBEDDING = "roberta.embeddings.word_embeddings.weight"


@pytest.fixture
def packed(make_checkpoint, inject):
    def make(dtype, stored=None):
        base = make_checkpoint(dtype=stored)
        general = np.random.default_rng(3).integers(1, 1000, 400)
        path = base.parent / "general.csv"
        path.write_text("token_id,count\n" + "".join(f"{i},{n}\n" for i, n in enumerate(general)))
        exposure = str(path)
        directory, _ = inject(base, "replace", inject__head_bias=0.5, inject__exposure=exposure, inject__pack=dtype)
        return str(base), directory

    return make


def with_pack(directory, base, pack):
    """Put another pack and what it gives into a result, and make every hash and figure right again."""
    opened = open_checkpoint(base)
    manifest = read_manifest(directory)
    made_of = base_of_checkpoint(opened, base, np.array(manifest["embedding"]["protected"]))
    tensors = apply_edit(made_of, edit_of_packs(scaled_packs([pack], [1.0]), made_of))
    proof, kind = read_raw_tensors(directory / "factors.safetensors")
    changes = row_changes(opened.tensors[EMBEDDING], tensors[EMBEDDING], np.arange(400))
    proof = {name: replace(each, data=each.data.copy()) for name, each in proof.items()}
    proof |= from_numpy([("displacement", changes.displacement)])
    (directory / PACK_FILE).unlink()
    write_pack(directory / PACK_FILE, pack)
    (directory / "factors.safetensors").unlink()
    write_raw_tensors(directory / "factors.safetensors", proof, kind)
    (directory / "model.safetensors").unlink()
    write_raw_tensors(directory / "model.safetensors", tensors, opened.metadata)
    manifest["packs"][0]["sha256"] = pack.sha256
    manifest["tensors"] = tensor_hashes(tensors)
    manifest["embedding"] |= {
        "rows_changed": len(changes.changed),
        "changed_ids_sha256": ids_sha256(changes.changed),
    }
    manifest["files"] = {name: file_sha256(directory / name) for name in manifest["files"]}
    manifest["sha256"] = manifest_sha256(manifest)
    (directory / "injection.json").write_text(json.dumps(manifest))


def failed(report):
    return {check.name for check in report.checks if not check.passed}


@pytest.mark.parametrize("dtype", ["int8", "fp16", "fp32"])
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_an_injection_with_a_pack_is_computed_again(packed, dtype, stored):
    base, directory = packed(dtype, stored)
    report = verify_injection(directory, base, reload=False)
    assert report.failures == []
    details = {check.name: check.detail for check in report.checks}
    assert details["pack asked for"] == f"one domain pack in {dtype}"
    assert {"computed rows", "rows of packs"} < details.keys()


def test_a_row_that_the_forged_pack_moves_further_is_caught(packed):
    base, directory = packed("int8")
    pack = read_pack(directory / PACK_FILE)
    tensors = {name: np.array(getattr(pack, name)) for name in ("ids", "rows", "scales", "bias_ids", "bias", "share")}
    tensors["scales"][7] *= 1.5
    left_out = ("format", "format_version", "tensors", "sha256")
    forged = sealed_pack(tensors, {name: value for name, value in pack.header.items() if name not in left_out})
    with_pack(directory, base, forged)
    assert failed(verify_checkpoint(directory, base, reload=False)) == set()
    report = verify_injection(directory, base, reload=False)
    assert failed(report) == {"computed rows"}
    assert str(pack.ids[7]) in report.failures[0]


def test_a_rounding_that_was_not_asked_for_is_caught(packed):
    base, directory = packed("int8")
    manifest = read_manifest(directory)
    manifest["parameters"]["pack"] = "fp16"
    manifest["sha256"] = manifest_sha256(manifest)
    (directory / "injection.json").write_text(json.dumps(manifest))
    assert {"pack asked for", "computed rows"} <= failed(verify_injection(directory, base, reload=False))


def test_an_applied_checkpoint_has_the_files_and_the_record_of_the_base(packed, tmp_path):
    base, directory = packed("int8")
    applied = tmp_path / "applied"
    apply_packs([directory / PACK_FILE], base, str(applied))
    report = verify_injection(applied, base, reload=False)
    assert report.failures == []
    assert {"files of the base", "record of packs"} < {check.name for check in report.checks}

    def resign(change):
        manifest = read_manifest(applied)
        change(manifest)
        manifest["files"] = {name: file_sha256(applied / name) for name in manifest["files"]}
        manifest["sha256"] = manifest_sha256(manifest)
        (applied / "injection.json").write_text(json.dumps(manifest))

    config = json.loads((applied / "config.json").read_text())
    (applied / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1.0}))
    resign(lambda manifest: None)
    assert failed(verify_injection(applied, base, reload=False)) == {"files of the base"}
    (applied / "config.json").write_text(json.dumps(config))
    resign(lambda manifest: manifest["embedding"]["protected"].pop())
    assert failed(verify_injection(applied, base, reload=False)) == {"record of packs"}
