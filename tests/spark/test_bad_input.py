"""What a user gets wrong: exit code 2 and a message that names it, wherever in the pipeline it is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wals_spark.errors import ConfigError, InputError, TransientError
from wals_spark.pipeline import load_stage
from wals_spark.stage import Context, run_stage

pytestmark = pytest.mark.spark

TEXT = ["the cat sat on the mat", "the dog sat on the log", "a cat and a dog met"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(TEXT * 5)))
    return path


@pytest.fixture
def run(make_config: Callable[..., Any], spark: Any, corpus: Path) -> Callable[..., Context]:
    """Run stages up to the one named, with their checks first, as the pipeline does."""

    def run(last: str, **values: Any) -> Context:
        settings = {
            "corpus__path": str(corpus),
            "corpus__id_column": "id",
            "corpus__held_out_fraction": 0.0,
            "vocabulary__kind": "words",
            "vocabulary__min_count": 1,
            "train__k": 2,
            "train__sweeps": 1,
            **values,
        }
        context = Context(make_config(**settings), lambda: spark)
        names = ["corpus", "vocabulary", "cooccurrence", "train", "inject"]
        stages = [load_stage(name) for name in names[: names.index(last) + 1]]
        for stage in stages:
            stage.check(context.config)
        for stage in stages:
            run_stage(context, stage)
        return context

    return run


def test_wrong_column_names_the_columns_there_are(run):
    with pytest.raises(InputError, match=r"body.*text"):
        run("corpus", corpus__text_column="body")


def test_missing_path_is_named(run):
    with pytest.raises(InputError, match="nowhere"):
        run("corpus", corpus__path="/nowhere/at/all")


def test_tokenizer_without_a_fast_version_is_refused_before_any_stage(run, tmp_path):
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        run("vocabulary", vocabulary__kind="tokenizer", vocabulary__tokenizer=str(slow))


def test_more_factors_than_tokens_is_refused_with_both_numbers(run):
    with pytest.raises(InputError, match=r"k is 1000.*10 rows"):
        run("train", train__k=1000)


def test_more_ranks_than_slots_is_refused_with_both_numbers(run):
    with pytest.raises(ConfigError, match=r"needs 7 concurrent tasks.*offers 2"):
        run("train", train__workers=7)


def test_missing_checkpoint_is_found_before_any_stage(run, tmp_path, tiny_tokenizer):
    path = tmp_path / "tokenizer.json"
    tiny_tokenizer.tokenizer.save(str(path))
    settings = {"vocabulary__kind": "tokenizer", "vocabulary__tokenizer": str(path)}
    with pytest.raises(InputError, match="no-checkpoint"):
        run("inject", inject__mode="blend", inject__checkpoint=str(tmp_path / "no-checkpoint"), **settings)
    assert not (tmp_path / "warehouse" / "documents").exists()


def test_dynamic_allocation_is_refused_with_the_key_to_change(spark, monkeypatch):
    from pyspark import SparkConf, SparkContext

    from wals_spark.cluster.preflight import preflight

    conf = SparkConf(loadDefaults=False).setAll(spark.sparkContext.getConf().getAll())
    conf.set("spark.dynamicAllocation.enabled", "true")
    conf.set("spark.master", "spark://cluster:7077")
    monkeypatch.setattr(SparkContext, "getConf", lambda self: conf)
    with pytest.raises(ConfigError, match=r"spark\.dynamicAllocation\.enabled is true.*set it to false"):
        preflight(spark, workers=None, device="cpu")


def test_two_commands_on_one_run_at_the_same_time(run):
    context = run("corpus")
    with (
        context.run.locked(),
        pytest.raises(TransientError, match="being worked on by another command"),
        context.run.locked(),
    ):
        pytest.fail("the lock was given twice")
