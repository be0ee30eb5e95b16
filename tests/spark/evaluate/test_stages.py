from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from wals_spark import schemas
from wals_spark.errors import ConfigError, GateError, InputError
from wals_spark.evaluate.before_after import held_out_texts
from wals_spark.evaluate.metrics import read_metrics
from wals_spark.evaluate.stages import EvaluateStage
from wals_spark.runs import Manifest
from wals_spark.stage import Metric, run_stage, write_metrics

pytestmark = pytest.mark.spark


@pytest.fixture
def saved_tokenizer(tiny_tokenizer, tmp_path):
    tiny_tokenizer.tokenizer.save(str(tmp_path / "tokenizer.json"))
    return str(tmp_path / "tokenizer.json")


@pytest.fixture
def context(make_context, tiny_tokenizer, saved_tokenizer):
    """A context with documents, factors and manifests of a run, without any of the stages before."""

    def make(**values):
        made = make_context(
            vocabulary__tokenizer=saved_tokenizer,
            evaluate__sequence_length=18,
            evaluate__sequences=20,
            evaluate__bootstrap=100,
            **values,
        )
        words = [token for token in tiny_tokenizer.tokens if not token.startswith("<")]
        generator = np.random.default_rng(0)
        texts = [" ".join(generator.choice(words, 30)) for _ in range(60)]
        documents = pa.table(
            {"doc_id": [f"d{i}" for i in range(60)], "text": texts, "held_out": [i % 2 == 0 for i in range(60)]}
        )
        made.tables.replace_rows(schemas.DOCUMENTS, documents, {"batch_id": "default"})
        size = len(tiny_tokenizer.tokens)
        for side in ("row", "col"):
            rows = pa.table(
                {
                    "token_id": pa.array(np.arange(size), pa.int32()),
                    "token": list(tiny_tokenizer.tokens),
                    "count": pa.array([0] * 5 + [50] * (size - 5), pa.int64()),
                    "vector": pa.array(list(generator.normal(size=(size, 4)).astype("f4")), pa.list_(pa.float32())),
                    "bias": pa.array(np.zeros(size), pa.float32()),
                }
            )
            made.tables.replace_rows(schemas.FACTORS, rows, {"run_id": "default", "side": side})
        outputs = {"train": {"objective": "ppmi", "k": 4}, "corpus": {"documents": 60}}
        for stage in ("train", "corpus"):
            manifest = Manifest(stage, "default", "complete", stage, "default", outputs=outputs[stage], seconds=1.5)
            made.manifests.write(manifest)
        write_metrics(made, "train", [Metric("loss", 10.0 / step, step=step) for step in (1, 2, 3)])
        return made

    return make


def test_the_report_of_a_run_without_a_checkpoint(context, tmp_path):
    (tmp_path / "pairs.txt").write_text("the cat 1\ncat dog 2\nred old 3\ncat unheard 3\n")
    made = context(evaluate__similarity=(str(tmp_path / "pairs.txt"),))
    manifest, _ = run_stage(made, EvaluateStage())
    page = Path(made.run.path("report.html")).read_text()
    assert manifest.key == "default.none"
    assert "3 of 4 pairs" in page
    assert "Factorisation" in page
    rows = {row["name"]: row["value"] for row in read_metrics(made)["evaluate"]}
    assert rows["similarity.pairs.coverage"] == 0.75
    assert "similarity.pairs" in rows


def test_training_runs_in_the_metrics_are_shown(context):
    made = context()
    curve = [Metric("loss", 9.0 - step / 10, 8.8 - step / 10, 9.2 - step / 10, step) for step in (0, 10)]
    write_metrics(made, "pretrain.random", curve)
    write_metrics(made, "pretrain.factors", [*curve, Metric("difference.random", -0.5, -0.6, -0.4)])
    run_stage(made, EvaluateStage())
    page = Path(made.run.path("report.html")).read_text()
    assert "Training from factors" in page
    assert "factors − random" in page


def test_before_and_after_of_an_injected_checkpoint(context, tiny_model, tmp_path):
    import torch

    before, after = str(tmp_path / "before"), str(tmp_path / "after")
    tiny_model.save_pretrained(before)
    with torch.no_grad():
        tiny_model.lm_head.bias[:5] += 5.0
    tiny_model.save_pretrained(after)
    made = context(inject__mode="blend", inject__checkpoint=before, inject__output=after)
    outputs = {"directory": after, "rows": 18}
    made.manifests.write(Manifest("inject", "default.blend", "complete", "i", "default", outputs=outputs))
    manifest, _ = run_stage(made, EvaluateStage())
    rows = {row["name"]: row for row in read_metrics(made)["evaluate.blend"]}
    change = rows["masked_lm.after-before.nll"]
    assert 0 < change["low"] < change["value"] < change["high"]
    assert manifest.outputs["report"].endswith("report-blend.html")
    assert 'class="chip worse">worse' in Path(manifest.outputs["report"]).read_text()
    assert run_stage(made, EvaluateStage())[1] is False


@pytest.fixture
def worse(tiny_model, tmp_path):
    """A checkpoint and one that is clearly worse."""
    import torch

    before, after = str(tmp_path / "before"), str(tmp_path / "after")
    tiny_model.save_pretrained(before)
    with torch.no_grad():
        tiny_model.lm_head.bias[:5] += 5.0
    tiny_model.save_pretrained(after)
    return before, after


def injected(context, before, after, **values):
    made = context(inject__mode="blend", inject__checkpoint=before, inject__output=after, **values)
    outputs = {"directory": after}
    made.manifests.write(Manifest("inject", "default.blend", "complete", "i", "default", outputs=outputs))
    return made


def test_the_gate_refuses_what_is_worse_and_leaves_report_and_figures(context, worse):
    made = injected(context, *worse, evaluate__gate=True)
    with pytest.raises(GateError, match=r"masked-LM loss \+\d") as error:
        run_stage(made, EvaluateStage())
    assert error.value.exit_code == 3
    assert Path(made.run.path("report-blend.html")).is_file()
    assert "masked_lm.after-before.nll" in {row["name"] for row in read_metrics(made)["evaluate.blend"]}
    manifest = made.manifests.find("evaluate", "default.blend")
    assert manifest.state == "refused"
    assert len(manifest.outputs["regressions"]) >= 1


def test_the_gate_lets_pass_what_is_no_worse_than_its_margin(context, worse):
    before, after = worse
    assert run_stage(injected(context, *worse, evaluate__gate=True, evaluate__gate_margin=20.0), EvaluateStage())[1]
    assert run_stage(injected(context, after, before, evaluate__gate=True), EvaluateStage())[1]


def test_further_checkpoints_are_measured_on_the_same_masks(context, worse):
    made = injected(context, *worse, evaluate__checkpoints={"control": worse[0]})
    run_stage(made, EvaluateStage())
    rows = {row["name"]: row["value"] for row in read_metrics(made)["evaluate.blend"]}
    assert rows["masked_lm.control.nll"] == rows["masked_lm.before.nll"]
    assert rows["masked_lm.control-before.nll"] == 0
    assert rows["masked_lm.after-before.nll"] > 0


def test_further_checkpoints_are_checked_before_anything_runs(make_config, saved_tokenizer):
    settings = {"inject__mode": "blend", "vocabulary__tokenizer": saved_tokenizer}
    with pytest.raises(InputError, match=r"evaluate\.checkpoints\.control: there is no checkpoint"):
        EvaluateStage().check(make_config(**settings, evaluate__checkpoints={"control": "/nowhere"}))
    with pytest.raises(ConfigError, match="before is the name of an arm"):
        EvaluateStage().check(make_config(**settings, evaluate__checkpoints={"before": "hub/name"}))


def test_vocabularies_that_differ_are_not_compared(context, worse):
    made = context(inject__mode="trim", inject__checkpoint=worse[0], inject__output=worse[1])
    made.manifests.write(Manifest("inject", "default.trim", "complete", "i", "default"))
    manifest, _ = run_stage(made, EvaluateStage())
    assert "not compared: before and after have different tokens" in Path(manifest.outputs["report"]).read_text()


def test_controls_stand_beside_the_vectors(context, tmp_path):
    (tmp_path / "pairs.txt").write_text("the cat 1\ncat dog 2\nred old 3\n")
    made = context(
        evaluate__similarity=(str(tmp_path / "pairs.txt"),), evaluate__controls=("permuted", "random", "svd")
    )
    pairs = [(i, j) for i in range(5, 23) for j in range(5, 23) if i != j]
    cells = pa.table(
        {
            "row_id": pa.array([i for i, _ in pairs], pa.int32()),
            "col_id": pa.array([j for _, j in pairs], pa.int32()),
            "units": pa.array([1 + (i * j) % 7 for i, j in pairs], pa.int64()),
        }
    )
    made.tables.replace_rows(schemas.COOCCURRENCE, cells, {"batch_id": "default", "row_block": "0"})
    outputs = {"batches": ["default"], "vocabulary_size": 23}
    made.manifests.write(Manifest("train", "default", "complete", "t", "default", outputs=outputs))
    manifest, _ = run_stage(made, EvaluateStage())
    names = {row["name"] for row in read_metrics(made)["evaluate"]}
    assert {"similarity.pairs.permuted", "similarity.pairs.random", "similarity.pairs.svd"} <= names
    page = Path(manifest.outputs["report"]).read_text()
    assert all(label in page for label in ("rows permuted", "random vectors", "truncated SVD"))


def test_init_is_compared_with_random_weights(context, tiny_model, tmp_path):
    start, after = str(tmp_path / "start"), str(tmp_path / "after")
    tiny_model.config.save_pretrained(start)
    tiny_model.save_pretrained(after)
    made = context(inject__mode="init", inject__checkpoint=start, inject__output=after)
    outputs = {"directory": after}
    made.manifests.write(Manifest("inject", "default.init", "complete", "i", "default", outputs=outputs))
    run_stage(made, EvaluateStage())
    rows = {row["name"]: row["value"] for row in read_metrics(made)["evaluate.init"]}
    assert rows["masked_lm.before.nll"] == pytest.approx(np.log(23), abs=0.2)


def test_held_out_documents_are_the_same_sample_in_any_order(context):
    made = context()
    five = held_out_texts(made, 5)
    assert len(five) == 5
    assert held_out_texts(made, 12)[:5] == five
    assert len(held_out_texts(made, 1000)) == 30


def test_no_held_out_document_is_an_input_error(context):
    made = context()
    documents = pa.table({"doc_id": ["a"], "text": ["the cat"], "held_out": [False]})
    made.tables.replace_rows(schemas.DOCUMENTS, documents, {"batch_id": "default"})
    with pytest.raises(InputError, match="no document was held out"):
        held_out_texts(made, 5)


def test_a_missing_rating_file_is_found_before_anything_runs(make_config):
    with pytest.raises(InputError, match=r"evaluate\.similarity: there is no file"):
        EvaluateStage().check(make_config(evaluate__similarity=("nowhere.txt",)))


def test_a_comparison_needs_the_tokenizer_and_held_out_documents(make_config, saved_tokenizer):
    words = make_config(inject__mode="blend", vocabulary__kind="words")
    with pytest.raises(ConfigError, match=r"evaluate\.masked_lm needs vocabulary\.kind: tokenizer"):
        EvaluateStage().check(words)
    counted = make_config(inject__mode="blend", vocabulary__tokenizer=saved_tokenizer, corpus__held_out_fraction=0.0)
    with pytest.raises(ConfigError, match="held_out_fraction is 0"):
        EvaluateStage().check(counted)
    EvaluateStage().check(make_config(inject__mode="blend", vocabulary__kind="words", evaluate__masked_lm=False))


def test_a_changed_rating_file_makes_the_stage_run_again(context, tmp_path):
    path = tmp_path / "pairs.txt"
    path.write_text("the cat 1\ncat dog 2\nred old 3\n")
    made = context(evaluate__similarity=(str(path),))
    run_stage(made, EvaluateStage())
    assert run_stage(made, EvaluateStage())[1] is False
    path.write_text("the cat 1\ncat dog 2\nred old 5\n")
    assert run_stage(made, EvaluateStage())[1] is True
