"""Mode ``transfer`` as a stage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from inject_models import train_tokenizer

from wals_spark.checkpoints.checkpoint import open_checkpoint
from wals_spark.errors import InputError
from wals_spark.inject.stages import InjectStage, VerifyStage
from wals_spark.stage import run_stage
from wals_spark.tokenizer import load_tokenizer

pytestmark = pytest.mark.spark
DOMAIN = "acute patients received daily tablets while chronic lesions in the lung were measured on the hills by nurses"


@pytest.fixture
def tokenizer(tmp_path):
    """The path of a tokenizer of other text."""
    path = tmp_path / "new" / "tokenizer.json"
    path.parent.mkdir()
    train_tokenizer(360, DOMAIN).save(str(path))
    return path


def test_transfer_then_verify_then_nothing(context, tokenizer):
    made = context(inject__mode="transfer", vocabulary__tokenizer=str(tokenizer.parent))
    InjectStage().check(made.config)
    manifest, ran = run_stage(made, InjectStage())
    verified, _ = run_stage(made, VerifyStage())
    assert ran
    assert manifest.key == "default.transfer"
    assert {"row origins", "computed rows", "computed head bias", "identical"} <= verified.outputs["checks"].keys()
    directory = manifest.outputs["directory"]
    assert load_tokenizer(directory).tokens == load_tokenizer(str(tokenizer)).tokens
    found, old = open_checkpoint(directory), open_checkpoint(str(made.config.inject.checkpoint))
    assert found.vocab_size == len(load_tokenizer(str(tokenizer)).tokens) != old.vocab_size
    assert np.array_equal(found.tensors[found.embedding].rows[:5], old.tensors[old.embedding].rows[:5])
    assert run_stage(made, InjectStage())[1] is False


def test_a_tokenizer_that_the_model_cannot_use_is_refused_before_anything_runs(context, tokenizer):
    made = context(inject__mode="transfer", vocabulary__tokenizer=str(tokenizer))
    content = json.loads(tokenizer.read_text())
    content["post_processor"] = None
    tokenizer.write_text(json.dumps(content))
    with pytest.raises(InputError, match="puts nothing around a text"):
        InjectStage().check(made.config)
    assert not Path(made.run.path("model-transfer")).exists()
