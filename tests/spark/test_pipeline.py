"""The whole pipeline on a toy corpus, as a user runs it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from wals_spark.cli import main
from wals_spark.runs import ManifestStore
from wals_spark.stage import Context
from wals_spark.stage_outputs import STAGE_OF

pytestmark = [pytest.mark.spark, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
STAGES = ["corpus", "vocabulary", "cooccurrence", "train", "export", "neighbours", "evaluate"]
TOPICS = ["river water boat bank fish", "money bank loan rate debt", "tree leaf forest green wood"]


def write_corpus(directory: Path, documents: int = 120, common: str = "the of and") -> Path:
    """Documents about three topics, a hundred words each."""
    rng = random.Random(3)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "documents.jsonl"
    with path.open("w") as stream:
        for index in range(documents):
            words = rng.choice(TOPICS).split()
            text = " ".join(rng.choice([*words, *common.split()]) for _ in range(100))
            stream.write(json.dumps({"id": f"d{index}", "body": text}) + "\n")
    return path


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    corpus = write_corpus(tmp_path / "corpus")
    config = tmp_path / "toy.yaml"
    config.write_text(f"""
warehouse: {tmp_path / "warehouse"}
corpus: {{path: {corpus}, id_column: id, text_column: body, held_out_fraction: 0.1}}
vocabulary: {{kind: words, min_count: 1}}
cooccurrence: {{window_left: 5, window_right: 5}}
train: {{k: 4, sweeps: 3, workers: 2}}
neighbours: {{tokens: [river, loan], count: 3, min_count: 1}}
spark:
  conf: {{spark.master: "local[2]", spark.ui.enabled: false, spark.sql.shuffle.partitions: 2, spark.driver.memory: 1g}}
""")
    return ["--config", str(config)]


def finished_at(tmp_path: Path) -> dict[str, str]:
    """Stage -> when its output was finished."""
    store = ManifestStore(str(tmp_path / "warehouse"))
    found = {}
    for stage in [*STAGES, "inject", "verify"]:
        for key in store.keys(stage):
            found[stage] = str(store.require(stage, key).finished_at) + store.require(stage, key).fingerprint
    return found


@pytest.fixture(autouse=True)
def _keep_the_shared_session(spark, monkeypatch):
    """Commands of this module run within the session of the tests, and must not stop it."""
    monkeypatch.setattr("wals_spark.cluster.session.open_session", lambda config, name="": spark)
    monkeypatch.setattr(Context, "stop", lambda self: None)


def test_every_stage_runs_and_a_second_call_does_nothing(arguments, tmp_path, caplog):
    assert main(["pipeline", *arguments]) == 0
    first = finished_at(tmp_path)
    assert set(first) == set(STAGES)
    assert main(["pipeline", *arguments]) == 0
    assert finished_at(tmp_path) == first
    status = json.loads((tmp_path / "warehouse" / "runs" / "default" / "status.json").read_text())
    assert (status["state"], status["ran"]) == ("complete", [])


def test_manifests_have_the_keys_that_the_types_of_outputs_declare(arguments, tmp_path):
    assert main(["pipeline", *arguments]) == 0
    store = ManifestStore(str(tmp_path / "warehouse"))
    for kind, stage in STAGE_OF.items():
        for key in store.keys(stage):
            found = set(store.require(stage, key).outputs)
            assert kind.__required_keys__ <= found <= kind.__required_keys__ | kind.__optional_keys__, stage


def test_changed_key_reruns_its_stage_and_those_after_it_only(arguments, tmp_path):
    assert main(["pipeline", *arguments]) == 0
    before = finished_at(tmp_path)
    assert main(["pipeline", *arguments, "--set", "train.k=3"]) == 0
    after = finished_at(tmp_path)
    changed = {stage for stage in STAGES if before[stage] != after[stage]}
    assert changed == {"train", "export", "neighbours", "evaluate"}


def test_topics_are_neighbours(arguments, tmp_path, make_config):
    assert main(["pipeline", *arguments]) == 0
    from wals_spark.factors.store import read_vectors
    from wals_spark.tables import open_tables

    vectors = read_vectors(open_tables("parquet", str(tmp_path / "warehouse"), lambda: None), "default")
    unit = vectors.matrix / ((vectors.matrix**2).sum(1, keepdims=True) ** 0.5)
    row = {token: index for index, token in enumerate(vectors.tokens)}
    cosine = unit @ unit.T
    assert cosine[row["river"], row["boat"]] > cosine[row["river"], row["loan"]] + 0.3


def test_stage_alone_without_its_input_says_what_to_run(arguments, caplog):
    assert main(["train", *arguments]) == 2


def test_stages_one_by_one_give_what_the_pipeline_gives(arguments, tmp_path):
    for stage in STAGES:
        assert main([stage, *arguments]) == 0
    first = finished_at(tmp_path)
    assert main(["pipeline", *arguments]) == 0
    assert finished_at(tmp_path) == first


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extra", "code"),
    [([], 0), (["--set", "corpus.path=/no/such/place"], 2), (["--set", "corpus.pth=x"], 2)],
    ids=["done", "missing-path", "unknown-key"],
)
def test_exit_codes_through_spark_submit(arguments, extra, code):
    spark_submit = Path(sys.executable).with_name("spark-submit")
    done = subprocess.run(
        [str(spark_submit), "--master", "local[2]", str(ROOT / "jobs" / "corpus.py"), *arguments, *extra],
        capture_output=True,
        text=True,
        env={**os.environ, "PYSPARK_PYTHON": sys.executable},
    )
    assert done.returncode == code, done.stderr[-3000:]


def test_batches_are_counted_summed_folded_and_dropped_by_command(arguments, tmp_path):
    # Tuesday brings a new word: the vocabulary grows at its end between the two batches.
    for batch, common in (("monday", "the of and"), ("tuesday", "the of and moreover")):
        corpus = write_corpus(tmp_path / batch, 40, common)
        for stage in ("corpus", "vocabulary", "cooccurrence"):
            assert main([stage, *arguments, "--batch-id", batch, "--set", f"corpus.path={corpus}"]) == 0
    store = ManifestStore(str(tmp_path / "warehouse"))
    assert store.keys("cooccurrence") == ["monday", "tuesday"]
    assert main(["train", *arguments, "--batches", "monday,tuesday"]) == 0
    nnz = store.require("train", "default").outputs["nnz"]
    sizes = [store.require("cooccurrence", batch).outputs["vocabulary_size"] for batch in ("monday", "tuesday")]
    assert store.require("train", "default").outputs["vocabulary_size"] == sizes[1] == sizes[0] + 1
    assert main(["compact", *arguments, "--into", "week"]) == 0
    assert store.keys("cooccurrence") == ["week"]
    assert store.require("cooccurrence", "week").outputs["nnz"] == nnz
    assert main(["drop-batch", *arguments, "--batch-id", "week"]) == 0
    assert store.keys("cooccurrence") == []
    assert main(["drop-batch", *arguments, "--batch-id", "week"]) == 0


def test_every_stage_works_in_a_path_of_odd_characters(arguments, tmp_path):
    odd = tmp_path / "odd [x] {y,z} q?* #1 back\\slash"
    corpus = write_corpus(odd / "corpus")
    settings = [f"warehouse={odd / 'warehouse'}", f"corpus.path={corpus}", "export.formats=[npy, word2vec]"]
    flags = [part for setting in settings for part in ("--set", setting)]
    assert main(["pipeline", *arguments, *flags]) == 0
    store = ManifestStore(str(odd / "warehouse"))
    assert {stage for stage in STAGES if store.keys(stage)} >= {"corpus", "vocabulary", "cooccurrence", "train"}
    assert main(["compact", *arguments, *flags, "--into", "all-of-it"]) == 0
    assert main(["drop-batch", *arguments, *flags, "--batch-id", "all-of-it"]) == 0
    assert main(["maintain", *arguments, *flags]) == 0
