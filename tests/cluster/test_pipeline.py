"""The pipeline on executors in processes of their own gives what it gives in one process."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wals_spark.factors.store import read_vectors
from wals_spark.tables import open_tables

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]


def run_pipeline(directory: Path, corpus: Path, master: str) -> np.ndarray:
    settings = {
        "warehouse": str(directory),
        "corpus.path": str(corpus),
        "corpus.id_column": "id",
        "vocabulary.kind": "words",
        "vocabulary.min_count": 1,
        "train.k": 5,
        "train.sweeps": 3,
        "train.workers": 2,
        "evaluate.masked_lm": "false",
        "spark.conf": json.dumps({"spark.master": master, "spark.ui.enabled": "false", "spark.executor.memory": "2g"}),
    }
    arguments = [argument for key, value in settings.items() for argument in ("--set", f"{key}={value}")]
    done = subprocess.run(
        [sys.executable, "-m", "wals_spark.cli", "pipeline", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYSPARK_PYTHON": sys.executable},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    tables = open_tables("parquet", str(directory), lambda: pytest.fail("no session is needed to read files"))
    return read_vectors(tables, "default", "concat").matrix


def test_local_cluster_equals_local(tmp_path):
    rng = random.Random(5)
    words = [f"w{chr(97 + index)}" for index in range(25)]
    corpus = tmp_path / "documents.jsonl"
    with corpus.open("w") as stream:
        for index in range(80):
            text = " ".join(rng.choices(words, weights=range(1, 26), k=rng.randint(1, 120)))
            stream.write(json.dumps({"id": str(index), "text": text}) + "\n")
    local = run_pipeline(tmp_path / "local", corpus, "local[2]")
    cluster = run_pipeline(tmp_path / "cluster", corpus, "local-cluster[2,1,2048]")
    assert local.shape[1] == 10
    np.testing.assert_allclose(cluster, local, rtol=0, atol=1e-5 * np.abs(local).max())
