"""Modes `fit` and `auto` in Spark, on a tiny checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from wals_spark import schemas, storage
from wals_spark.checkpoints import checkpoint as ckpt
from wals_spark.checkpoints.verify import verify_checkpoint
from wals_spark.errors import ConfigError, GateError, InputError
from wals_spark.inject.fit import fit_job
from wals_spark.inject.fit.stages import StatesStage
from wals_spark.inject.stages import InjectStage
from wals_spark.matrix.list_column import matrix_to_lists
from wals_spark.runs import Manifest
from wals_spark.stage import run_stage
from wals_spark.tokenizer import load_tokenizer

pytestmark = pytest.mark.spark
SETTINGS = {"states__sequences": 120, "states__validation_fraction": 0.3}


def skewed_documents(documents: int = 90) -> list[list[int]]:
    """Documents in which few of the ordinary tokens are frequent."""
    generator = np.random.default_rng(0)
    return [
        np.minimum(5 + generator.geometric(0.1, generator.integers(30, 90)), 299).tolist() for _ in range(documents)
    ]


@pytest.fixture
def fitted(text_context):
    """A context with states, ready to fit."""

    def make(**values):
        batches = {"default": skewed_documents()}
        context = text_context(batches, **{**SETTINGS, **values})
        run_stage(context, StatesStage())
        return context

    return make


def add_factors(context):
    """Factors of the run, random."""
    import pyarrow as pa

    tokenizer = load_tokenizer(context.config.inject.checkpoint)
    generator = np.random.default_rng(0)
    for side in ("row", "col"):
        rows = pa.table(
            {
                "token_id": pa.array(np.arange(len(tokenizer.tokens)), pa.int32()),
                "token": list(tokenizer.tokens),
                "count": pa.array(np.full(len(tokenizer.tokens), 50), pa.int64()),
                "vector": matrix_to_lists(generator.standard_normal((len(tokenizer.tokens), 4)).astype(np.float32)),
                "bias": pa.array(np.zeros(len(tokenizer.tokens)), pa.float32()),
            }
        )
        context.tables.replace_rows(schemas.FACTORS, rows, {"run_id": "default", "side": side})
    outputs = {"vocabulary_hash": tokenizer.hash, "batches": ["default"]}
    context.manifests.write(Manifest("train", "default", "complete", "f", "default", outputs=outputs))


def manifest_of(directory: str) -> dict:
    return json.loads((Path(directory) / "injection.json").read_text())


def test_only_rows_and_biases_move_and_held_out_text_gains(fitted):
    context = fitted()
    made, _ = run_stage(context, InjectStage())
    directory = made.outputs["directory"]
    record = manifest_of(directory)
    assert record["fit"]["through_the_encoder"]["low"] > 0
    assert record["fit"]["fit"]["held_out"]["gain"]["low"] > 0
    before = ckpt.open_checkpoint(context.config.inject.checkpoint)
    after = ckpt.open_checkpoint(directory)
    moved = {name for name in before.tensors if not before.tensors[name].same_bytes(after.tensors[name])}
    assert moved == {before.embedding, before.head_bias}
    protected = ckpt.protected_ids(load_tokenizer(directory), dict(before.config), before.vocab_size)
    E0, E = ckpt.embedding_values(before), ckpt.embedding_values(after)
    np.testing.assert_array_equal(E0[protected], E[protected])
    report = verify_checkpoint(Path(directory), context.config.inject.checkpoint)
    assert report.failures == []


def test_a_pack_in_int8_lies_beside_the_checkpoint(fitted):
    made, _ = run_stage(fitted(), InjectStage())
    (pack,) = manifest_of(made.outputs["directory"])["packs"]
    assert pack["dtype"] == "int8"
    assert pack["rows"] == made.outputs["rows_changed"]


def test_what_a_fit_leaves_for_a_resume_is_gone_afterwards(fitted):
    context = fitted()
    run_stage(context, InjectStage())
    assert not [info for info in storage.list_files(context.run.path("")) if info.base_name.startswith("fit-")]


def test_one_and_two_ranks_write_the_same_rows(fitted):
    found = []
    for ranks in (1, 2):
        context = fitted(fit__workers=ranks, run_id=f"ranks-{ranks}")
        directory = run_stage(context, InjectStage())[0].outputs["directory"]
        found.append(ckpt.embedding_values(ckpt.open_checkpoint(directory)))
    np.testing.assert_allclose(found[0], found[1], atol=2e-3)


def test_a_killed_fit_goes_on_from_where_it_was(fitted, monkeypatch):
    context = fitted(fit__workers=1)
    real = fit_job.run_barrier

    def killed(numbers, plan, function, payload, records):
        real(numbers, plan, function, payload, records)
        raise KeyboardInterrupt

    monkeypatch.setattr(fit_job, "run_barrier", killed)
    with pytest.raises(KeyboardInterrupt):
        run_stage(context, InjectStage())
    monkeypatch.setattr(fit_job, "run_barrier", real)
    (home,) = Path(context.run.path("")).glob("fit-*")
    left = json.loads((home / "free" / "status.json").read_text())
    directory = run_stage(context, InjectStage())[0].outputs["directory"]
    fit = manifest_of(directory)["fit"]["fit"]
    assert fit["objective"][0] == pytest.approx(left["value"], rel=1e-5)
    assert fit["objective"][-1] <= left["value"] + 1e-3


def test_factors_move_rows_too(fitted):
    context = fitted(fit__rows="both")
    add_factors(context)
    record = manifest_of(run_stage(context, InjectStage())[0].outputs["directory"])
    assert record["fit"]["fit"]["lambda_factors"] == pytest.approx(100 * record["fit"]["fit"]["lambda_rows"])
    assert record["fit"]["fit"]["moved_rows"] >= record["fit"]["fit"]["free_rows"]


def test_auto_names_what_it_took_and_why(fitted):
    context = fitted(inject__mode="auto")
    directory = run_stage(context, InjectStage())[0].outputs["directory"]
    auto = manifest_of(directory)["fit"]["auto"]
    assert set(auto["candidates"]) == {"bias", "free"}
    assert auto["chosen"] == max(auto["candidates"], key=lambda name: auto["candidates"][name]["value"])
    assert auto["left_out"] == {"blend": "the run has no factors"}
    assert f"took **{auto['chosen']}**" in (Path(directory) / "README.md").read_text()


@pytest.mark.parametrize("values", [{}, {"inject__anchor_min_count": 10_000}], ids=["refused", "too few anchors"])
def test_auto_goes_on_where_blend_cannot_be_made(fitted, values):
    context = fitted(inject__mode="auto", **values)
    add_factors(context)
    auto = manifest_of(run_stage(context, InjectStage())[0].outputs["directory"])["fit"]["auto"]
    assert auto["chosen"] in ("bias", "free")
    assert auto["left_out"]["blend"]


def test_a_gain_that_is_not_clear_is_refused_and_nothing_written(fitted):
    context = fitted(fit__lambda_rows=1e12)
    with pytest.raises(GateError, match="nothing was written"):
        run_stage(context, InjectStage())
    assert not Path(context.run.path("model-fit")).exists()


def test_another_checkpoint_than_that_of_the_states_is_refused(fitted, make_checkpoint, monkeypatch):
    context = fitted()
    path = Path(context.config.inject.checkpoint) / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "initializer_range": 0.5}))
    with pytest.raises(InputError, match="run `wals-spark states`"):
        run_stage(context, InjectStage())


def test_a_multiple_of_an_unknown_penalty_is_refused(make_config):
    with pytest.raises(ConfigError, match="give lambda_rows too"):
        make_config(fit__lambda_bias=1.0)
