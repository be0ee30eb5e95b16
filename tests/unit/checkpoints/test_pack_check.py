"""What `verify` proves of a checkpoint with packs, and what it catches."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest

from wals_spark.checkpoints.artifact import manifest_sha256
from wals_spark.checkpoints.domain_pack import read_pack, write_pack
from wals_spark.checkpoints.pack_application import apply_packs
from wals_spark.checkpoints.pack_making import make_pack
from wals_spark.checkpoints.raw_tensor import file_sha256, replace_rows, tensor_hashes
from wals_spark.checkpoints.row_comparison import row_hashes
from wals_spark.checkpoints.safetensors_file import read_raw_tensors, write_raw_tensors
from wals_spark.checkpoints.verify import read_manifest, verify_checkpoint
from wals_spark.errors import ConfigError, InputError

EMBEDDING, BIAS = "roberta.embeddings.word_embeddings.weight", "lm_head.bias"
STATED = {"inject__exposure": "rank", "inject__head_bias": 0.5}
ODD = [None, True, -1, 3, 1.5, "x", "../x", "\0", [], {}, [None], [1 << 70], {"x": None}, 10**400, float("nan")]


def failed(report):
    return {check.name for check in report.checks if not check.passed}


@pytest.fixture
def packed(make_checkpoint, inject):
    base = make_checkpoint()
    directory, manifest = inject(base, "replace", inject__pack="int8", **STATED)
    return str(base), directory, json.loads(json.dumps(manifest))


def resign(directory, change=lambda manifest: None):
    """Make every recorded hash right again, as a careful forger would, and save injection.json."""
    manifest = read_manifest(directory)
    tensors, _ = read_raw_tensors(directory / "model.safetensors")
    manifest["tensors"] = tensor_hashes(tensors)
    manifest["files"] = {name: file_sha256(directory / name) for name in manifest["files"]}
    change(manifest)
    manifest["sha256"] = manifest_sha256(manifest)
    (directory / "injection.json").write_text(json.dumps(manifest))


def edit_tensors(directory, change):
    tensors, metadata = read_raw_tensors(directory / "model.safetensors")
    tensors = {name: type(each)(each.dtype, each.shape, each.data.copy()) for name, each in tensors.items()}
    change(tensors)
    write_raw_tensors(directory / "model.safetensors", tensors, metadata)


def test_an_injection_with_its_pack_verifies_with_and_without_the_base(packed):
    base, directory, manifest = packed
    assert verify_checkpoint(directory, reload=False).failures == []
    report = verify_checkpoint(directory, base)
    assert report.failures == []
    details = {check.name: check.detail for check in report.checks}
    assert details["packs"] == "1 packs have their recorded hashes and were made for the recorded base"
    assert details["rows of packs"] == "rows and biases are what the packs give, to the bit"
    changed = manifest["embedding"]["rows_changed"]
    assert details["rows in packs"] == f"every one of {changed} changed rows is in a pack"
    assert "domain_pack.safetensors" in manifest["files"]
    assert manifest["packs"][0]["sha256"] == read_pack(directory / "domain_pack.safetensors").sha256


def test_a_changed_byte_of_the_pack_is_caught(packed):
    _, directory, _ = packed
    path = directory / "domain_pack.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert failed(verify_checkpoint(directory, reload=False)) == {"files", "packs"}


def test_another_pack_in_its_place_is_caught_though_hashes_of_files_are_forged(packed, make_checkpoint, inject):
    base, directory, _ = packed
    other, _ = inject(make_checkpoint("same"), "replace", inject__pack="fp16", name="other", **STATED)
    (directory / "domain_pack.safetensors").write_bytes((other / "domain_pack.safetensors").read_bytes())
    resign(directory)
    report = verify_checkpoint(directory, base, reload=False)
    assert failed(report) == {"packs"}
    assert "it was replaced" in report.failures[0]


def test_a_pack_that_does_not_give_the_rows_is_caught_though_all_hashes_are_forged(packed, make_checkpoint, inject):
    base, directory, _ = packed
    other, _ = inject(make_checkpoint("same"), "replace", inject__pack="fp16", name="other", **STATED)
    (directory / "domain_pack.safetensors").write_bytes((other / "domain_pack.safetensors").read_bytes())
    sha256 = read_pack(other / "domain_pack.safetensors").sha256
    resign(directory, lambda manifest: manifest["packs"][0].update(sha256=sha256))
    report = verify_checkpoint(directory, base, reload=False)
    assert failed(report) == {"rows of packs"}
    assert "not what the packs give: rows " in report.failures[0]


def test_a_changed_row_is_caught_though_all_hashes_are_forged(packed):
    base, directory, _ = packed

    def nudge(tensors):
        row = tensors[EMBEDDING].values()[60:61] * np.float32(1.0001)
        tensors[EMBEDDING] = replace_rows(tensors[EMBEDDING], np.array([60]), row)

    edit_tensors(directory, nudge)
    resign(directory)
    report = verify_checkpoint(directory, base, reload=False)
    assert failed(report) == {"rows of packs"}
    assert report.failures == ["rows of packs: not what the packs give: rows 60"]


def test_a_changed_bias_is_caught_though_all_hashes_are_forged(packed):
    base, directory, _ = packed
    edit_tensors(directory, lambda tensors: tensors[BIAS].data.view("<f4").__setitem__(60, 3.0))
    resign(directory)
    report = verify_checkpoint(directory, base, reload=False)
    assert report.failures == [f"rows of packs: {BIAS} is not what the packs give"]


def test_a_row_outside_the_packs_is_caught_without_the_base(packed):
    _, directory, manifest = packed
    pack = read_pack(directory / "domain_pack.safetensors")
    outside = np.setdiff1d(np.arange(pack.shape[0]), np.append(pack.ids, manifest["embedding"]["protected"]))
    if not len(outside):
        pytest.skip("every row that may move did")
    row = int(outside[0])
    edit_tensors(
        directory,
        lambda tensors: tensors.update(
            {EMBEDDING: replace_rows(tensors[EMBEDDING], np.array([row]), np.ones((1, 16)))}
        ),
    )
    resign(directory)
    assert "rows in packs" in failed(verify_checkpoint(directory, reload=False))


def test_another_strength_is_caught(packed):
    base, directory, _ = packed
    resign(directory, lambda manifest: manifest["packs"][0].update(strength=0.5))
    assert failed(verify_checkpoint(directory, base, reload=False)) == {"rows of packs"}
    resign(directory, lambda manifest: manifest["packs"][0].update(strength=1e300))
    report = verify_checkpoint(directory, base, reload=False)
    assert failed(report) == {"packs"}


def test_an_applied_checkpoint_whose_packs_are_not_listed_is_caught(packed, tmp_path):
    base, directory, _ = packed
    apply_packs([directory / "domain_pack.safetensors"], base, str(tmp_path / "applied"))
    resign(tmp_path / "applied", lambda manifest: manifest.pop("packs"))
    assert "packs" in failed(verify_checkpoint(tmp_path / "applied", base, reload=False))
    resign(tmp_path / "applied", lambda manifest: manifest.update(packs=[]))
    assert "rows in packs" in failed(verify_checkpoint(tmp_path / "applied", base, reload=False))


def test_a_tokenizer_of_another_vocabulary_is_caught(packed):
    _, directory, _ = packed
    path = directory / "tokenizer.json"
    path.write_text(path.read_text().replace("<mask>", "<MASK>"))
    resign(directory)
    report = verify_checkpoint(directory, reload=False)
    assert failed(report) == {"packs"}
    assert "is for a vocabulary of the hash" in report.failures[0]


def test_every_key_of_a_record_may_be_missing_or_anything(packed):
    base, directory, manifest = packed
    for key in [*manifest["packs"][0], None]:
        for odd in ODD:
            changed = json.loads(json.dumps(manifest))
            if key is None:
                changed["packs"] = odd
            elif odd is None:
                del changed["packs"][0][key]
            else:
                changed["packs"][0][key] = odd
            changed["sha256"] = manifest_sha256(changed)
            (directory / "injection.json").write_text(json.dumps(changed))
            with contextlib.suppress(ConfigError, InputError):
                verify_checkpoint(directory, base, reload=False)


def test_row_hashes_are_of_bits(packed):
    base, directory, _ = packed
    tensors, _ = read_raw_tensors(directory / "model.safetensors")
    pack = make_pack(directory, base, "fp32")
    before = row_hashes(tensors[EMBEDDING])
    write_pack(directory.with_name("pack"), pack)
    apply_packs([directory.with_name("pack")], base, str(directory.with_name("again")))
    after, _ = read_raw_tensors(directory.with_name("again") / "model.safetensors")
    assert np.array_equal(before, row_hashes(after[EMBEDDING]))
