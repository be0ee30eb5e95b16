"""Domain packs applied to their base: the checkpoint that the injection wrote, to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from wals_spark.checkpoints.checkpoint import open_checkpoint
from wals_spark.checkpoints.domain_pack import read_pack, write_pack
from wals_spark.checkpoints.pack_application import apply_packs
from wals_spark.checkpoints.pack_making import make_pack
from wals_spark.checkpoints.verify import verify_checkpoint
from wals_spark.errors import ConfigError, InputError

STATED = {"inject__exposure": "rank", "inject__head_bias": 0.5}
PACK = "domain_pack.safetensors"


def weights(directory):
    return (directory / "model.safetensors").read_bytes()


@pytest.fixture
def two(make_checkpoint, inject):
    """A base, and the packs of two injections into it."""
    base = make_checkpoint()
    first, _ = inject(base, "replace", name="first", inject__pack="int8", **STATED)
    second, _ = inject(base, name="second", inject__exposure="corpus", inject__pack="fp16")
    return str(base), first / PACK, second / PACK


@pytest.mark.parametrize("dtype", ["int8", "fp16", "fp32"])
@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
def test_apply_writes_the_checkpoint_that_the_injection_wrote(make_checkpoint, inject, tmp_path, dtype, stored):
    base = make_checkpoint(dtype=stored)
    directory, manifest = inject(base, "replace", inject__pack=dtype, **STATED)
    assert manifest["embedding"]["rows_changed"] > 100
    assert manifest["head_bias"]["changed"]
    assert verify_checkpoint(directory, str(base), reload=False).failures == []
    apply_packs([directory / PACK], str(base), str(tmp_path / "applied"))
    assert weights(tmp_path / "applied") == weights(directory)
    assert verify_checkpoint(tmp_path / "applied", str(base), reload=False).failures == []


def test_a_pack_in_32_bits_changes_nothing_of_what_is_injected(make_checkpoint, inject):
    base = make_checkpoint()
    plain, _ = inject(base, "replace", **STATED)
    packed, _ = inject(base, "replace", name="packed", inject__pack="fp32", **STATED)
    assert weights(packed) == weights(plain)


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
def test_a_pack_in_32_bits_made_later_gives_the_checkpoint_to_the_bit(make_checkpoint, inject, tmp_path, stored):
    base = make_checkpoint(dtype=stored)
    directory, _ = inject(base, "replace", **STATED)
    write_pack(tmp_path / "pack", make_pack(directory, str(base), "fp32"))
    apply_packs([tmp_path / "pack"], str(base), str(tmp_path / "applied"))
    assert weights(tmp_path / "applied") == weights(directory)


@pytest.mark.parametrize("class_name", ["RobertaModel", "BertForMaskedLM", "DistilBertForMaskedLM"])
def test_other_classes_have_packs_too(make_checkpoint, inject, tmp_path, class_name):
    base = make_checkpoint(class_name=class_name)
    directory, _ = inject(base, "replace", inject__pack="int8", inject__exposure="rank")
    apply_packs([directory / PACK], str(base), str(tmp_path / "applied"))
    assert weights(tmp_path / "applied") == weights(directory)
    assert verify_checkpoint(tmp_path / "applied", str(base)).failures == []


def test_an_applied_checkpoint_says_what_it_is_and_loads(two, tmp_path):
    base, first, second = two
    manifest = apply_packs([first, second], base, str(tmp_path / "both"), strengths=[1.0, 0.5])
    report = verify_checkpoint(tmp_path / "both", base)
    assert report.failures == []
    assert "reload AutoModelForMaskedLM" in {check.name for check in report.checks}
    assert manifest["mode"] == "apply"
    by_hash = {record["sha256"]: record for record in manifest["packs"]}
    assert by_hash[read_pack(first).sha256]["strength"] == 1
    assert by_hash[read_pack(second).sha256]["strength"] == 0.5
    assert {record["mode"] for record in manifest["packs"]} == {"replace", "blend"}
    assert manifest["fit"]["rows_of_several_packs"] > 100
    assert {record["file"] for record in manifest["packs"]} == {
        "domain_pack-1.safetensors",
        "domain_pack-2.safetensors",
    }
    card = (tmp_path / "both" / "README.md").read_text()
    assert "whose token embedding was changed by domain packs" in card
    assert "| domain_pack-2.safetensors | " in card
    assert "never on the sum of several" in card


def test_the_order_of_the_packs_changes_no_bit(two, tmp_path):
    base, first, second = two
    for name, packs, strengths in (("a", [first, second], [1.0, 0.5]), ("b", [second, first], [0.5, 1.0])):
        apply_packs(packs, base, str(tmp_path / name), strengths=strengths)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    for name in ("domain_pack-1.safetensors", "factors.safetensors", "README.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_strength_0_is_the_base_and_says_so(two, tmp_path):
    base, first, second = two
    manifest = apply_packs([first, second], base, str(tmp_path / "none"), strengths=[0.0])
    before, after = open_checkpoint(base), open_checkpoint(str(tmp_path / "none"))
    assert all(before.tensors[name].same_bytes(after.tensors[name]) for name in before.tensors)
    assert manifest["embedding"]["rows_changed"] == 0
    assert verify_checkpoint(tmp_path / "none", base, reload=False).failures == []
    assert "added packs that" in (tmp_path / "none" / "README.md").read_text()


def test_half_the_strength_moves_rows_half_way(two, tmp_path):
    base, first, _ = two
    found = []
    for strength in (1.0, 0.5, -1.0):
        apply_packs([first], base, str(tmp_path / f"at {strength}"), strengths=[strength])
        opened = open_checkpoint(str(tmp_path / f"at {strength}"))
        found.append(opened.tensors[opened.embedding].values().astype(np.float64))
    opened = open_checkpoint(base)
    E0 = opened.tensors[opened.embedding].values().astype(np.float64)
    whole, half, away = (rows - E0 for rows in found)
    assert np.abs(whole).max() > 0.01
    assert np.allclose(half, whole / 2, atol=1e-7)
    assert np.allclose(away, -whole, atol=1e-7)


def test_an_applied_checkpoint_can_be_packed_into_one(two, tmp_path):
    base, first, second = two
    apply_packs([first, second], base, str(tmp_path / "both"))
    write_pack(tmp_path / "sum", make_pack(tmp_path / "both", base, "fp32"))
    apply_packs([tmp_path / "sum"], base, str(tmp_path / "again"))
    assert weights(tmp_path / "again") == weights(tmp_path / "both")
    assert len(read_pack(tmp_path / "sum").header["injection"]["packs"]) == 2


def test_another_base_is_refused_with_both_hashes_and_nothing_is_written(two, make_checkpoint, tmp_path):
    base, first, _ = two
    opened = open_checkpoint(base)
    other = make_checkpoint("other", edit=lambda model: model.get_input_embeddings().weight[60].fill_(1.0))
    expected = opened.tensors[opened.embedding].sha256
    with pytest.raises(InputError, match=rf"has the SHA-256 [0-9a-f]{{64}}, expected {expected}; apply it to the"):
        apply_packs([first], str(other), str(tmp_path / "applied"))
    encoder = make_checkpoint("encoder", edit=lambda model: model.lm_head.dense.bias.fill_(1.0))
    with pytest.raises(InputError, match=r"lm_head\.dense\.bias of .*encoder has the SHA-256"):
        apply_packs([first], str(encoder), str(tmp_path / "applied"))
    assert not (tmp_path / "applied").exists()


def test_a_base_without_its_tokenizer_or_with_another_is_refused(two, tmp_path, make_checkpoint):
    _, first, _ = two
    other = make_checkpoint("other")
    path = other / "tokenizer.json"
    path.write_text(path.read_text().replace("<mask>", "<MASK>"))
    with pytest.raises(InputError, match=r"is for a vocabulary of the hash [0-9a-f]{16}, the tokenizer of"):
        apply_packs([first], str(other), str(tmp_path / "applied"))
    path.unlink()
    with pytest.raises(InputError, match=r"has no tokenizer\.json"):
        apply_packs([first], str(other), str(tmp_path / "applied"))


def test_an_output_that_holds_something_is_left_alone(two, tmp_path):
    base, first, second = two
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"--output: .*mine exists; choose another, or replace it with --overwrite"):
        apply_packs([first], base, str(tmp_path / "mine"))
    with pytest.raises(InputError, match="is not an earlier result"):
        apply_packs([first], base, str(tmp_path / "mine"), overwrite=True)
    with pytest.raises(ConfigError, match=r"is the checkpoint itself \(--checkpoint\)"):
        apply_packs([first], base, base, overwrite=True)
    with pytest.raises(ConfigError, match=r"holds the pack .*, which a result may not replace"):
        apply_packs([first], base, str(first.parent), overwrite=True)
    apply_packs([first], base, str(tmp_path / "applied"))
    before = weights(tmp_path / "applied")
    apply_packs([second], base, str(tmp_path / "applied"), overwrite=True)
    assert weights(tmp_path / "applied") != before
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"


def test_no_pack_is_refused(two, tmp_path):
    with pytest.raises(ConfigError, match="there is no pack to apply"):
        apply_packs([], two[0], str(tmp_path / "applied"))
