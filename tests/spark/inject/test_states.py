"""The stage `states` in Spark, on a tiny checkpoint."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from inject_models import random_documents

from wals_spark import schemas, storage, token_shards
from wals_spark.errors import ConfigError, InputError
from wals_spark.inject.fit import sample, stages, states_job
from wals_spark.inject.fit.explain import explain_states
from wals_spark.inject.fit.stages import StatesStage
from wals_spark.mlm.hidden_states import MaskedStates
from wals_spark.mlm.state_files import list_state_parts, load_states, read_sequences
from wals_spark.runs import Manifest
from wals_spark.stage import run_stage

pytestmark = pytest.mark.spark
NAMES = [field.name for field in fields(MaskedStates)]


def states_of(manifest, split):
    return load_states(list_state_parts(manifest.outputs["directory"], split))


def test_states_of_the_sample_then_nothing(text_context):
    context = text_context()
    StatesStage().check(context.config)
    manifest, ran = run_stage(context, StatesStage())
    assert ran
    splits = manifest.outputs["splits"]
    assert splits["training"]["sequences"] + splits["validation"]["sequences"] == 40
    assert splits["validation"]["sequences"] > 0
    assert set(splits) == {"training", "validation"}
    for split, facts in splits.items():
        found = states_of(manifest, split)
        assert len(found) == facts["positions"]
        assert found.base_loss.mean() == pytest.approx(facts["loss"], rel=1e-6)
    assert not set(states_of(manifest, "training").document) & set(states_of(manifest, "validation").document)
    parts = list_state_parts(manifest.outputs["directory"])
    assert manifest.outputs["bytes"] == sum(Path(part.path).stat().st_size for part in parts)
    assert run_stage(context, StatesStage())[1] is False


def test_any_partitioning_gives_the_same_bytes(text_context, spark, monkeypatch):
    found = []
    for number, tasks in enumerate((1, 3)):
        monkeypatch.setattr(
            states_job, "choose_device", lambda spark, wanted, tasks=tasks: states_job.Device("cpu", gpus=tasks)
        )
        context = text_context(shards=1 + 2 * number, run_id=f"run-{number}")
        found.append(run_stage(context, StatesStage())[0])
    for split in ("training", "validation"):
        one, other = (states_of(manifest, split) for manifest in found)
        assert all(getattr(one, name).tobytes() == getattr(other, name).tobytes() for name in NAMES)


def test_a_killed_stage_keeps_its_parts(text_context, monkeypatch):
    context = text_context()
    real = stages.run_parts

    def killed(spark, job, parts, device):
        real(spark, job, parts[:2], device)
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "run_parts", killed)
    with pytest.raises(KeyboardInterrupt):
        run_stage(context, StatesStage())
    monkeypatch.setattr(stages, "run_parts", real)
    directory = next(Path(context.run.path("states")).iterdir())
    before = {path.name: path.stat().st_mtime_ns for path in directory.glob("part-*")}
    assert len(before) == 2
    drawn = []
    monkeypatch.setattr(sample, "sample_sequences", lambda *arguments: drawn.append(arguments))
    manifest, _ = run_stage(context, StatesStage())
    assert drawn == []
    assert {name: (directory / name).stat().st_mtime_ns for name in before} == before
    assert len(list_state_parts(str(directory))) > 2
    monkeypatch.undo()
    whole, _ = run_stage(text_context(run_id="other"), StatesStage())
    for name in NAMES:
        assert (
            getattr(states_of(whole, "training"), name).tobytes()
            == getattr(states_of(manifest, "training"), name).tobytes()
        )


def test_parts_of_another_size_or_damaged_ones_are_computed_again(text_context):
    first, _ = run_stage(text_context(), StatesStage())
    directory = Path(first.outputs["directory"])
    (directory / "states.json").unlink()
    (directory / "part-00000.arrow").write_bytes(b"damaged")
    second, ran = run_stage(text_context(states__part_sequences=30), StatesStage(), force=True)
    assert ran
    assert second.outputs["directory"] == str(directory)
    assert sorted(path.name for path in directory.glob("part-*")) == [
        "part-00000.arrow",
        "part-00001.arrow",
        "part-00002.arrow",
    ]
    assert second.outputs["splits"]["training"]["positions"] == first.outputs["splits"]["training"]["positions"]


def test_force_computes_whole_states_anew(text_context):
    context = text_context()
    manifest, _ = run_stage(context, StatesStage())
    path = Path(list_state_parts(manifest.outputs["directory"])[0].path)
    before = path.stat().st_mtime_ns
    run_stage(context, StatesStage(), force=True)
    assert path.stat().st_mtime_ns > before


def test_other_settings_are_another_output_and_the_old_one_goes_and_nothing_else(text_context):
    first, _ = run_stage(text_context(), StatesStage())
    home = Path(first.outputs["directory"]).parent
    (home / "notes").mkdir()
    (home / ("a" * 16)).mkdir()
    second, ran = run_stage(text_context(states__maskings=3), StatesStage())
    assert ran
    assert not Path(first.outputs["directory"]).exists()
    assert sorted(path.name for path in home.iterdir()) == sorted(
        ["a" * 16, "notes", Path(second.outputs["directory"]).name]
    )


@pytest.mark.parametrize("values", [{"states__batch_size": 3}, {"states__part_sequences": 7}, {"inject__mode": "auto"}])
def test_how_it_is_computed_and_the_mode_are_no_part_of_the_fingerprint(text_context, values):
    run_stage(text_context(), StatesStage())
    assert run_stage(text_context(**values), StatesStage())[1] is False


@pytest.mark.parametrize(
    "values",
    [{"states__maskings": 1}, {"states__precision": "bf16"}, {"seed": 2}, {"states__validation_fraction": 0.3}],
)
def test_what_changes_states_makes_them_anew(text_context, values):
    run_stage(text_context(), StatesStage())
    assert run_stage(text_context(**values), StatesStage())[1] is True


def test_another_base_makes_them_anew(text_context, make_checkpoint):
    context = text_context()
    first, _ = run_stage(context, StatesStage())
    make_checkpoint(intermediate_size=30)
    second, ran = run_stage(context, StatesStage())
    assert ran
    assert second.outputs["checkpoint_sha256"] != first.outputs["checkpoint_sha256"]


def test_general_batches_are_a_split_of_their_own(text_context):
    batches = {"domain": random_documents(0), "general": random_documents(1)}
    context = text_context(batches, inject__general_batches=["general"], states__general_sequences=10)
    manifest, _ = run_stage(context, StatesStage())
    assert manifest.outputs["splits"]["general"]["sequences"] == 10
    sequences, splits = read_sequences(storage.join(manifest.outputs["directory"], states_job.SEQUENCES))
    keys = {batch: {token_shards.document_key(f"{batch}-{d}") for d in range(60)} for batch in batches}
    for key, split in zip(sequences.document.tolist(), splits, strict=True):
        assert key in keys["general" if split == "general" else "domain"]


def test_the_trained_batches_are_the_text_and_folded_ones_are_taken_apart(text_context):
    context = text_context({"a": random_documents(0), "b": random_documents(1), "c": random_documents(2)})
    assert StatesStage().inputs(context.config, context.manifests) == [("vocabulary", name) for name in "abc"]
    counted = {"folded": ["a", "c"], "unit": 1}
    context.manifests.write(Manifest("cooccurrence", "sum", "complete", "f", "r", outputs=counted))
    context.manifests.write(Manifest("train", "default", "complete", "f", "r", outputs={"batches": ["sum"]}))
    assert StatesStage().inputs(context.config, context.manifests) == [("vocabulary", "a"), ("vocabulary", "c")]


def test_repeated_sequences_count_once(text_context):
    documents = random_documents(0, documents=40, longest=30)
    manifest, _ = run_stage(text_context({"default": documents * 2}, states__sequences=80), StatesStage())
    assert sum(facts["sequences"] for facts in manifest.outputs["splits"].values()) == 40


@pytest.mark.parametrize(
    ("documents", "values", "message"),
    [
        (
            random_documents(0, documents=10, longest=30),
            {},
            "10 different sequences of 32 tokens in 10 documents; expected",
        ),
        ([], {}, "0 different sequences"),
        (
            [np.random.default_rng(0).integers(5, 300, 2000).tolist()],
            {},
            "are of one document, so no document can be held",
        ),
        (random_documents(0), {"states__validation_fraction": 0.95}, r"holds out \d+ of 40 sequences"),
    ],
)
def test_too_little_text_is_refused(text_context, documents, values, message):
    with pytest.raises(InputError, match=message):
        run_stage(text_context({"default": documents}, **values), StatesStage())


def test_text_of_one_document_can_be_fitted_on_without_validation(text_context):
    documents = [np.random.default_rng(0).integers(5, 300, 2000).tolist()]
    manifest, _ = run_stage(text_context({"default": documents}, states__validation_fraction=0), StatesStage())
    assert set(manifest.outputs["splits"]) == {"training"}


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"inject__checkpoint": None}, ConfigError, "inject.checkpoint names no model"),
        ({"vocabulary__kind": "words"}, ConfigError, "vocabulary.kind is words"),
        ({"states__sequence_length": 39}, InputError, r"states.sequence_length is 39, but .* has 38 positions"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(text_context, values, error, message):
    with pytest.raises(error, match=message):
        StatesStage().check(text_context(**values).config)


def test_a_checkpoint_without_a_head_is_refused_before_anything_starts(text_context, make_checkpoint):
    encoder = make_checkpoint(name="encoder", class_name="RobertaModel")
    with pytest.raises(InputError, match="is a RobertaModel without a masked-LM head"):
        StatesStage().check(text_context(checkpoint=encoder).config)


def test_another_tokenizer_than_the_corpus_is_refused(text_context, tmp_path, tiny_tokenizer):
    tiny_tokenizer.tokenizer.save(str(tmp_path / "tiny.json"))
    context = text_context(vocabulary__tokenizer=str(tmp_path / "tiny.json"))
    with pytest.raises(InputError, match="the model would read other words"):
        StatesStage().check(context.config)
    context = text_context()
    outputs = {"vocabulary_hash": "other", "encoded": "x"}
    context.manifests.write(Manifest("vocabulary", "default", "complete", "f", "r", outputs=outputs))
    with pytest.raises(InputError, match=r"\(of batch default\) has the hash other"):
        run_stage(context, StatesStage())


def test_general_batches_that_there_are_not_or_that_are_all_are_refused(text_context):
    with pytest.raises(InputError, match="news are not among the batches"):
        run_stage(text_context(inject__general_batches=["news"]), StatesStage())
    with pytest.raises(InputError, match="names every batch"):
        run_stage(text_context(inject__general_batches=["default"]), StatesStage())


def test_nan_in_the_states_is_refused_by_name(text_context, make_checkpoint):
    broken = make_checkpoint(name="broken", edit=lambda model: model.lm_head.layer_norm.weight.fill_(float("nan")))
    with pytest.raises(InputError, match=r"the states of \d+ of \d+ masked positions of a batch are NaN or infinite"):
        run_stage(text_context(checkpoint=broken), StatesStage())


def test_explain_prints_passes_bytes_and_hours_and_computes_nothing(text_context):
    context = text_context()
    lines = "\n".join(explain_states(context))
    assert "at most 40 sequences of 32 tokens" in lines
    assert "2 maskings each: 80 forward passes" in lines
    assert " minutes in " in lines
    assert not Path(context.run.path("states")).exists()
    tokens = sum(map(len, random_documents(0)))
    everything = "\n".join(explain_states(text_context(states__sequences=5000)))
    assert f"at most {tokens // 30 + 60} sequences of 32 tokens" in everything


def test_only_modes_that_fit_need_states(make_config):
    assert [
        mode for mode in ("none", "blend", "fit", "auto") if StatesStage().enabled(make_config(inject__mode=mode))
    ] == [
        "fit",
        "auto",
    ]


def test_metrics_have_the_loss_of_every_split(text_context):
    context = text_context()
    manifest, _ = run_stage(context, StatesStage())
    rows = {row.name: row.value for row in context.tables.read(schemas.METRICS, {"run_id": "default"}).collect()}
    assert rows["loss_validation"] == pytest.approx(manifest.outputs["splits"]["validation"]["loss"])
    assert rows["bytes"] == manifest.outputs["bytes"]
