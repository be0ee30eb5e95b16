from __future__ import annotations

import json

import numpy as np
import pytest

from wals_spark.checkpoints.artifact import manifest_sha256
from wals_spark.checkpoints.checkpoint import open_checkpoint
from wals_spark.checkpoints.edit import TokenFactors
from wals_spark.checkpoints.raw_tensor import from_values, replace_rows
from wals_spark.checkpoints.safetensors_file import read_raw_tensors, write_raw_tensors
from wals_spark.checkpoints.verify import read_manifest, verify_checkpoint
from wals_spark.errors import GateError, InputError

EMBEDDING = "roberta.embeddings.word_embeddings.weight"


def failed(report):
    return {check.name for check in report.checks if not check.passed}


def rewrite(directory, change):
    """Change tensors of model.safetensors and the file in place."""
    tensors, metadata = read_raw_tensors(directory / "model.safetensors")
    tensors = {name: type(t)(t.dtype, t.shape, t.data.copy()) for name, t in tensors.items()}
    change(tensors)
    write_raw_tensors(directory / "model.safetensors", tensors, metadata)


def sign(directory, change):
    """Change injection.json as a careful forger would: its own hash made right again."""
    manifest = read_manifest(directory)
    change(manifest)
    manifest["sha256"] = manifest_sha256(manifest)
    (directory / "injection.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("mode", ["blend", "replace", "init"])
def test_every_mode_verifies_and_reloads_fresh_in_every_class(make_checkpoint, inject, mode):
    base = make_checkpoint()
    directory, manifest = inject(base, mode, inject__head_bias=0.5, inject__exposure="corpus")
    report = verify_checkpoint(directory, str(base))
    assert report.failures == []
    assert manifest["embedding"]["rows_changed"] > 100
    names = {check.name for check in report.checks}
    assert {"base rows", "identical", "reload AutoModel", "reload AutoModelForMaskedLM"} <= names
    assert "reload AutoModelForSequenceClassification" in names


@pytest.mark.parametrize("class_name", ["RobertaModel", "RobertaForQuestionAnswering", "BertForMaskedLM"])
def test_other_classes_verify_and_reload_fresh(make_checkpoint, inject, class_name):
    base = make_checkpoint(class_name=class_name)
    directory, _ = inject(base)
    assert verify_checkpoint(directory, str(base)).failures == []


@pytest.mark.slow
@pytest.mark.new_interpreter
def test_half_precision_is_kept(make_checkpoint, inject):
    base = make_checkpoint(dtype="bfloat16")
    directory, _ = inject(base)
    report = verify_checkpoint(directory, str(base))
    assert report.failures == []
    assert any("torch.bfloat16" in check.detail for check in report.checks)


def test_a_changed_row_is_caught(make_checkpoint, inject):
    base = make_checkpoint()
    directory, _ = inject(base)

    def poison(tensors):
        row = tensors[EMBEDDING].values()[40:41] + 1
        tensors[EMBEDDING] = replace_rows(tensors[EMBEDDING], np.array([40]), row)

    rewrite(directory, poison)
    assert {"files", "tensors"} <= failed(verify_checkpoint(directory, reload=False))


def test_a_changed_protected_row_is_caught_even_when_hashes_are_forged(make_checkpoint, inject):
    base = make_checkpoint()
    directory, _ = inject(base)

    def poison(tensors):
        tensors[EMBEDDING] = replace_rows(tensors[EMBEDDING], np.array([4]), np.ones((1, 16)))

    rewrite(directory, poison)
    found, _ = read_raw_tensors(directory / "model.safetensors")

    def forge(manifest):
        from wals_spark.checkpoints.raw_tensor import file_sha256

        manifest["tensors"][EMBEDDING] = found[EMBEDDING].sha256
        manifest["files"]["model.safetensors"] = file_sha256(directory / "model.safetensors")

    sign(directory, forge)
    assert failed(verify_checkpoint(directory, reload=False)) == {"rows", "protected"}


def test_an_undeclared_tensor_is_caught_even_when_hashes_are_forged(make_checkpoint, inject):
    base = make_checkpoint()
    directory, _ = inject(base)
    name = "roberta.encoder.layer.0.output.dense.bias"
    rewrite(directory, lambda tensors: tensors.update({name: from_values(np.ones(16), "F32")}))
    found, _ = read_raw_tensors(directory / "model.safetensors")

    def forge(manifest):
        from wals_spark.checkpoints.raw_tensor import file_sha256

        manifest["tensors"][name] = manifest["base"]["tensors"][name] = found[name].sha256
        manifest["files"]["model.safetensors"] = file_sha256(directory / "model.safetensors")

    sign(directory, forge)
    assert failed(verify_checkpoint(directory, reload=False)) == set()
    assert failed(verify_checkpoint(directory, str(base), reload=False)) == {"base", "identical"}


def test_an_undeclared_head_bias_is_caught(make_checkpoint, inject):
    base = make_checkpoint()
    directory, manifest = inject(base)
    assert not manifest["head_bias"]["changed"]
    size = manifest["embedding"]["shape"][0]
    rewrite(directory, lambda tensors: tensors.update({"lm_head.bias": from_values(np.ones(size), "F32")}))
    assert {"tensors", "declared"} <= failed(verify_checkpoint(directory, reload=False))


def test_a_changed_hash_in_the_manifest_is_caught(make_checkpoint, inject):
    directory, _ = inject(make_checkpoint())
    manifest = read_manifest(directory)
    manifest["tensors"][EMBEDDING] = "0" * 64
    (directory / "injection.json").write_text(json.dumps(manifest))
    assert failed(verify_checkpoint(directory, reload=False)) == {"manifest", "tensors"}


def test_a_changed_gate_result_in_the_manifest_is_caught(make_checkpoint, inject):
    directory, _ = inject(make_checkpoint())
    manifest = read_manifest(directory)
    manifest["gate"]["gain"] = 0.9
    (directory / "injection.json").write_text(json.dumps(manifest))
    assert failed(verify_checkpoint(directory, reload=False)) == {"manifest"}


def test_another_base_is_caught(make_checkpoint, inject):
    directory, _ = inject(make_checkpoint())
    other = make_checkpoint("other", edit=lambda model: model.lm_head.dense.bias.fill_(1.0))
    assert failed(verify_checkpoint(directory, str(other), reload=False)) == {"base", "identical"}


def test_an_added_file_is_caught(make_checkpoint, inject):
    directory, _ = inject(make_checkpoint())
    (directory / "modeling_evil.py").write_text("print('ran')")
    assert failed(verify_checkpoint(directory, reload=False)) == {"files"}


def test_weights_cut_short_are_reported(make_checkpoint, inject):
    directory, _ = inject(make_checkpoint())
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert failed(verify_checkpoint(directory, reload=False)) == {"files", "readable"}


def test_a_config_that_unties_the_head_fails_the_reload(make_checkpoint, inject):
    directory, _ = inject(make_checkpoint())
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    assert "reload AutoModelForMaskedLM" in failed(verify_checkpoint(directory))


def test_a_directory_that_injection_did_not_write_is_an_input_error(make_checkpoint):
    with pytest.raises(InputError, match=r"no injection\.json"):
        verify_checkpoint(make_checkpoint())


def test_replace_takes_every_counted_row_from_the_factors(make_checkpoint, inject):
    base = make_checkpoint()
    directory, manifest = inject(base, "replace")
    counted, _ = read_raw_tensors(directory / "factors.safetensors")
    counts = counted["counts"].data.view("<i8")
    assert manifest["embedding"]["rows_changed"] == (counts > 0).sum()


def test_a_head_bias_moves_by_the_difference_of_log_frequencies(make_checkpoint, inject, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    base = make_checkpoint()
    size = open_checkpoint(str(base)).vocab_size
    general = np.random.default_rng(3).integers(1, 1000, size)
    pq.write_table(pa.table({"token_id": np.arange(size), "count": general}), tmp_path / "general.parquet")
    directory, manifest = inject(base, inject__head_bias=0.5, inject__exposure=str(tmp_path / "general.parquet"))
    old = open_checkpoint(str(base)).tensors["lm_head.bias"].values()
    new = open_checkpoint(str(directory)).tensors["lm_head.bias"].values()
    counts = read_raw_tensors(directory / "factors.safetensors")[0]["counts"].data.view("<i8")
    log = np.log((counts + 0.5) / (counts + 0.5).sum()) - np.log((general + 0.5) / (general + 0.5).sum())
    np.testing.assert_allclose((new - old)[5:], 0.5 * log[5:], rtol=1e-4, atol=1e-6)
    assert np.array_equal(new[:5], old[:5])
    assert manifest["head_bias"]["changed"]
    assert verify_checkpoint(directory, str(base), reload=False).failures == []


def test_a_stale_decoder_is_not_written_again(make_checkpoint, inject):
    from safetensors.torch import load_file, save_file

    base = make_checkpoint()
    state = load_file(base / "model.safetensors")
    state["lm_head.decoder.weight"] = state[EMBEDDING].clone()
    save_file(state, base / "model.safetensors", {"format": "pt"})
    directory, manifest = inject(base)
    assert manifest["base"]["dropped_copies"] == ["lm_head.decoder.weight"]
    assert "lm_head.decoder.weight" not in open_checkpoint(str(directory)).tensors
    assert verify_checkpoint(directory, str(base)).failures == []


def test_unrelated_factors_are_refused_and_force_records_it(make_checkpoint, inject):
    base = make_checkpoint()
    size = open_checkpoint(str(base)).vocab_size
    generator = np.random.default_rng(0)
    factors = TokenFactors(generator.standard_normal((size, 4)).astype(np.float32), np.full(size, 50))
    with pytest.raises(GateError, match="gate refused, nothing was written") as refused:
        inject(base, factors=factors)
    assert refused.value.details["gate"]["passed"] is False
    directory, manifest = inject(base, factors=factors, inject__force=True)
    assert manifest["gate"]["passed"] is False
    assert manifest["parameters"]["force"] is True
    assert "written with `force`" in (directory / "README.md").read_text()


def test_factors_of_another_tokenizer_are_refused(make_checkpoint, inject, make_config):
    from wals_spark.factors.store import Vectors
    from wals_spark.inject.prepare import prepare_edit

    base = make_checkpoint()
    config = make_config(inject__mode="blend", inject__checkpoint=str(base))
    vectors = Vectors(["a", "b"], np.ones(2, np.int64), np.ones((2, 3), np.float32), np.zeros(2, np.float32))
    with pytest.raises(InputError, match="rows would land on the wrong tokens"):
        prepare_edit(config, vectors)


def test_init_is_reproducible_and_scaled(make_checkpoint, inject):
    base = make_checkpoint(initializer_range=0.05)
    first, manifest = inject(base, "init", name="first")
    second, _ = inject(base, "init", name="second")
    a, b = open_checkpoint(str(first)), open_checkpoint(str(second))
    assert a.tensors[EMBEDDING].same_bytes(b.tensors[EMBEDDING])
    counts = read_raw_tensors(first / "factors.safetensors")[0]["counts"].data.view("<i8")
    rows = a.tensors[EMBEDDING].values()[counts > 0]
    assert np.sqrt((rows**2).mean()) == pytest.approx(0.05, rel=1e-3)
    assert not a.tensors[EMBEDDING].values()[1].any()
    assert manifest["base"]["initialised_from_seed"] == 1
    bias = a.tensors["lm_head.bias"].values()
    np.testing.assert_allclose(np.exp(bias.astype(np.float64)).sum(), 1, rtol=1e-5)


def test_init_needs_no_weights_and_brings_the_tokenizer(make_checkpoint, inject, tmp_path):
    import shutil

    base = make_checkpoint()
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(base / "config.json", bare)
    shutil.copy(base / "tokenizer.json", bare)
    directory, _ = inject(bare, "init", name="warm")
    assert (directory / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert verify_checkpoint(directory, str(bare)).failures == []


def test_a_row_poisoned_before_it_was_recorded_is_an_outlier(make_checkpoint, inject, monkeypatch):
    from wals_spark.checkpoints import artifact

    base = make_checkpoint()
    apply = artifact.apply_edit

    def poisoned(base_, change):
        tensors = apply(base_, change)
        row = change.ids[np.argmin(change.share[change.ids])]
        tensors[EMBEDDING] = replace_rows(tensors[EMBEDDING], np.array([row]), np.full((1, 16), 0.05))
        return tensors

    monkeypatch.setattr(artifact, "apply_edit", poisoned)
    directory, _ = inject(base)
    assert verify_checkpoint(directory, reload=False).failures == []  # the record tells of that row as of any other
    report = verify_checkpoint(directory, str(base), reload=False)
    assert failed(report) == {"outliers"}
    assert len(report.facts["suspicious_rows"]) == 1
