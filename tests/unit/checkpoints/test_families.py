"""Every mode for every class: RoBERTa, XLM-R, BERT and DistilBERT; masked-LM, encoder alone, the three task heads."""

from __future__ import annotations

import json

import numpy as np
import pytest

from wals_spark.checkpoints import artifact, atomic_directory
from wals_spark.checkpoints.checkpoint import embedding_values, open_checkpoint
from wals_spark.checkpoints.reload import load_with_class
from wals_spark.checkpoints.verify import verify_checkpoint
from wals_spark.factors.store import Vectors
from wals_spark.inject.prepare import prepare_edit
from wals_spark.inject.vocabulary.extend import extend_tokenizer
from wals_spark.tokenizer import load_tokenizer

HEADS = {
    "Model": "AutoModel",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
}
CLASSES = [
    *((f"Roberta{head}", auto) for head, auto in HEADS.items()),
    *((f"XLMRoberta{head}", auto) for head, auto in HEADS.items()),
    *((f"Bert{head}", auto) for head, auto in HEADS.items()),
    ("DistilBertForMaskedLM", "AutoModelForMaskedLM"),
    ("CamembertForMaskedLM", "AutoModelForMaskedLM"),
]


@pytest.fixture
def run(tmp_path, make_config, make_factors):
    """Run a mode on a checkpoint, without Spark: the directory, injection.json and the old size."""

    def apply(base, mode):
        tokenizer, old = base, load_tokenizer(str(base))
        if mode == "extend":
            pieces = old.tokenizer.encode(" dogsails", add_special_tokens=False).tokens
            content, _ = extend_tokenizer(json.loads((base / "tokenizer.json").read_text()), [pieces])
            tokenizer = tmp_path / "extended.json"
            tokenizer.write_text(json.dumps(content))
        loaded = load_tokenizer(str(tokenizer))
        E = embedding_values(open_checkpoint(str(base)))
        factors = make_factors(np.concatenate([E, E[50 : 50 + len(loaded.tokens) - len(E)]]))
        counts = np.where(np.arange(len(loaded.tokens)) < 300, factors.counts, 0) if mode == "trim" else factors.counts
        config = make_config(
            inject__mode=mode,
            inject__checkpoint=str(base),
            vocabulary__tokenizer=str(tokenizer),
            inject__anchor_min_count=1,
            inject__strengths="fitted",
        )
        vectors = Vectors(list(loaded.tokens), counts, factors.matrix, np.zeros(len(counts), np.float32))
        prepared, change, used = prepare_edit(config, vectors)
        described = {"mode": mode, "parameters": {"seed": 1, **config.inject.result_keys()}, "factors": None}
        with atomic_directory.staged_directory(str(tmp_path / "out"), replace=False) as staging:
            manifest = artifact.write_artifact(staging, prepared, change, used, described)
        return tmp_path / "out", manifest, len(E)

    return apply


@pytest.mark.parametrize("mode", ["blend", "replace", "extend", "trim"])
@pytest.mark.parametrize(("class_name", "auto"), CLASSES, ids=[name for name, _ in CLASSES])
def test_every_mode_works_on_every_class(make_checkpoint, run, class_name, auto, mode):
    base = make_checkpoint(class_name=class_name)
    directory, manifest, size = run(base, mode)
    assert verify_checkpoint(directory, str(base), reload=False).failures == []
    found = load_with_class(str(directory), auto)
    assert (found["class"], found["mismatched"], found["unexpected"]) == (class_name, [], [])
    assert [key for key in found["missing"] if "pooler" not in key] == []
    assert found.get("tied") is not False
    described = manifest["embedding"]
    assert described["new_rows"] == (described["shape"][0] - size if mode == "extend" else 0)
    assert (described["dropped_rows"] > 0) == (mode == "trim")
    if mode == "replace":
        assert described["rows_changed"] > 100
    assert found["padding_idx"] is not None
