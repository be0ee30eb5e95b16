from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from inject_models import train_tokenizer

from wals_spark import schemas
from wals_spark.checkpoints.domain_pack import read_pack
from wals_spark.checkpoints.verify import read_manifest
from wals_spark.errors import ConfigError, GateError, InputError
from wals_spark.inject.stages import InjectStage, VerifyStage
from wals_spark.runs import Manifest
from wals_spark.stage import run_stage
from wals_spark.tokenizer import load_tokenizer

pytestmark = pytest.mark.spark


def test_inject_then_verify_then_nothing(context):
    made = context()
    InjectStage().check(made.config)
    manifest, ran = run_stage(made, InjectStage())
    verified, _ = run_stage(made, VerifyStage())
    assert ran
    assert manifest.outputs["gate"]["passed"]
    assert manifest.key == "default.blend"
    assert verified.outputs["rows_changed"] == manifest.outputs["rows_changed"] > 0
    assert run_stage(made, InjectStage())[1] is False
    assert run_stage(made, VerifyStage())[1] is False
    recorded = read_manifest(Path(manifest.outputs["directory"]))
    assert recorded["run"]["fingerprint"] == manifest.fingerprint


def test_a_domain_pack_is_written_beside_the_checkpoint_and_proven(context):
    made = context(inject__pack="int8")
    manifest, _ = run_stage(made, InjectStage())
    verified, _ = run_stage(made, VerifyStage())
    directory = Path(manifest.outputs["directory"])
    assert read_manifest(directory)["packs"][0]["rows"] >= manifest.outputs["rows_changed"] > 0
    assert read_pack(directory / "domain_pack.safetensors").dtype == "int8"
    assert "to the bit" in verified.outputs["checks"]["rows of packs"]


@pytest.mark.parametrize("mode", ["init", "extend", "trim"])
def test_a_domain_pack_of_another_vocabulary_is_refused_at_once(make_config, mode):
    with pytest.raises(ConfigError, match=f"pack is int8: mode {mode} moves no rows of a base"):
        make_config(inject__mode=mode, inject__pack="int8")


def test_a_refusal_stands_in_the_manifest_and_leaves_no_output(context):
    made = context(related=False)
    with pytest.raises(GateError, match="nothing was written"):
        run_stage(made, InjectStage())
    manifest = made.manifests.find("inject", "default.blend")
    assert manifest.state == "refused"
    assert "not above the margin" in manifest.outputs["refused"]
    assert manifest.outputs["gate"]["passed"] is False
    assert not Path(made.run.path("model-blend")).exists()
    with pytest.raises(InputError, match="refused by its quality gate"):
        run_stage(made, VerifyStage())


def test_force_writes_in_spite_of_the_gate(context):
    made = context(related=False, inject__force=True)
    manifest, _ = run_stage(made, InjectStage())
    assert manifest.outputs["gate"]["passed"] is False


def test_a_rerun_replaces_the_own_output_of_the_run(context):
    first, _ = run_stage(context(), InjectStage())
    second, ran = run_stage(context(inject__b_max=0.1), InjectStage())
    assert ran
    assert second.outputs["directory"] == first.outputs["directory"]
    assert second.outputs["injection_sha256"] != first.outputs["injection_sha256"]


def test_an_output_that_exists_is_refused_in_check_unless_overwrite(context, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match=r"mine exists"):
        InjectStage().check(context(inject__output=str(tmp_path / "mine")).config)
    made = context(inject__output=str(tmp_path / "mine"), inject__overwrite=True)
    InjectStage().check(made.config)
    manifest, _ = run_stage(made, InjectStage())
    assert manifest.outputs["directory"] == str(tmp_path / "mine")


def test_a_run_of_another_warehouse_does_not_replace_an_output_of_the_same_name(context, tmp_path):
    asked = {"inject__output": str(tmp_path / "mine")}
    run_stage(context(**asked), InjectStage())
    before = (tmp_path / "mine" / "injection.json").read_bytes()
    InjectStage().check(context(**asked, inject__b_max=0.1).config)
    other = context(**asked, warehouse=str(tmp_path / "another"))
    with pytest.raises(InputError, match="mine exists"):
        InjectStage().check(other.config)
    with pytest.raises(InputError, match="mine exists"):
        run_stage(other, InjectStage())
    assert (tmp_path / "mine" / "injection.json").read_bytes() == before


def test_trim_is_verified_on_documents_counted_and_held_out(make_context, make_checkpoint):
    base = make_checkpoint()
    tokenizer = load_tokenizer(str(base))
    made = make_context(inject__mode="trim", inject__checkpoint=str(base), vocabulary__tokenizer=str(base))
    counts = np.zeros(len(tokenizer.tokens), np.int64)
    for index in tokenizer.tokenizer.encode("the cat sat on the mat", add_special_tokens=False).ids:
        counts[index] += 1
    columns = {
        "token_id": pa.array(np.arange(len(counts)), pa.int32()),
        "token": list(tokenizer.tokens),
        "count": pa.array(counts, pa.int64()),
        "document_count": pa.array(counts, pa.int64()),
        "is_special": [index in tokenizer.special_ids for index in range(len(counts))],
    }
    made.tables.replace_rows(schemas.VOCABULARY, pa.table(columns), {})
    texts = ["the cat sat on the mat", "tired sailors"]
    documents = pa.table({"doc_id": ["a", "b"], "text": texts, "held_out": [False, True]})
    made.tables.replace_rows(schemas.DOCUMENTS, documents, {"batch_id": "default"})
    made.manifests.write(Manifest("vocabulary", "default", "complete", "f", "default"))
    run_stage(made, InjectStage())
    verified, _ = run_stage(made, VerifyStage())
    assert verified.outputs["checks"]["segmentation"] == (
        "of 2 texts 1 segment as with the base, 1 hold dropped tokens"
    )


def test_a_checkpoint_that_is_the_default_output_is_refused_before_anything_runs(context, tmp_path):
    made = context()
    default = Path(made.run.path("model-blend"))
    run_stage(made, InjectStage())
    own = context(checkpoint=default)
    before = {path.name: path.read_bytes() for path in default.iterdir()}
    with pytest.raises(ConfigError, match=r"inject\.output: .* is the checkpoint itself \(inject\.checkpoint\)"):
        InjectStage().check(own.config)
    with pytest.raises(ConfigError, match="is the checkpoint itself"):
        run_stage(own, InjectStage())
    assert {path.name: path.read_bytes() for path in default.iterdir()} == before


def test_a_file_put_into_the_output_is_kept_and_a_second_identical_call_still_does_nothing(context):
    manifest, _ = run_stage(context(), InjectStage())
    notes = Path(manifest.outputs["directory"]) / "notes.txt"
    notes.write_text("mine")
    again = context()
    InjectStage().check(again.config)
    assert run_stage(again, InjectStage())[1] is False
    with pytest.raises(InputError, match=r"inject\.output: .*notes\.txt not written by wals_spark"):
        run_stage(context(inject__b_max=0.1), InjectStage())
    assert notes.read_text() == "mine"


def test_a_tampered_checkpoint_fails_the_verify_stage(context):
    made = context()
    manifest, _ = run_stage(made, InjectStage())
    path = Path(manifest.outputs["directory"]) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(GateError, match="failed 4 of"):
        run_stage(made, VerifyStage())


def test_factors_of_another_vocabulary_are_refused_at_start(context):
    made = context()
    made.manifests.write(Manifest("train", "default", "complete", "f", "default", outputs={"vocabulary_hash": "other"}))
    with pytest.raises(InputError, match="the train manifest says other"):
        run_stage(made, InjectStage())


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"inject__checkpoint": None}, ConfigError, "names no model"),
        ({"inject__mode": "none"}, ConfigError, r"inject\.mode is none"),
        ({"vocabulary__kind": "words"}, ConfigError, "rows are of tokens"),
        ({"inject__checkpoint": "/not/there"}, InputError, "there is nothing at"),
        ({"inject__exposure": "/not/there.parquet"}, InputError, r"inject\.exposure"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(make_config, make_checkpoint, values, error, message):
    settings = {"inject__mode": "blend", "inject__checkpoint": str(make_checkpoint()), **values}
    if values.get("inject__checkpoint", "") is None:
        del settings["inject__checkpoint"]
    with pytest.raises(error, match=message):
        InjectStage().check(make_config(**settings))


def test_a_corpus_tokenizer_other_than_the_checkpoints_is_refused_before_anything_runs(
    make_config, make_checkpoint, tmp_path
):
    other = tmp_path / "other.json"
    other.write_text(train_tokenizer(350).to_str())
    config = make_config(
        inject__mode="blend", inject__checkpoint=str(make_checkpoint()), vocabulary__tokenizer=str(other)
    )
    with pytest.raises(InputError, match="rows would land on the wrong tokens"):
        InjectStage().check(config)


def test_a_head_bias_without_a_head_is_refused_before_anything_runs(make_config, make_checkpoint):
    directory = make_checkpoint(class_name="RobertaModel")
    config = make_config(inject__mode="blend", inject__checkpoint=str(directory), inject__head_bias=0.5)
    with pytest.raises(InputError, match="without a masked-LM head"):
        InjectStage().check(config)
