"""The demonstration on a small scale, in its own process since it stops its Spark sessions."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(1600)]

SCRIPT = """
import sys
from wals_spark.demo import corpus, model, run, training
from wals_spark.mlm.pretrain import Schedule
from wals_spark.progress import setup_logging

if __name__ == "__main__":
    setup_logging()
    corpus.PACKAGES = ("pyparsing", "jinja2", "fsspec", "click")
    model.VOCABULARY, model.LAYERS, model.WIDTH, model.HEADS, model.LENGTH = 1200, 1, 32, 2, 64
    training.SCHEDULE = Schedule(steps=4, batch=4, learning_rate=1e-3)
    training.UNSEEN_SEQUENCES = 8
    load = run.settings.demo_config
    run.settings.demo_config = lambda directory, **keys: load(
        directory, train__k=16, train__sweeps=1, evaluate__sequences=8, evaluate__sequence_length=64,
        evaluate__bootstrap=200, spark__conf={"spark.master": "local[2]", "spark.ui.enabled": "false"}, **keys
    )
    run.run_demo(sys.argv[1])
"""


def test_the_demo_runs_and_a_second_run_does_nothing(tmp_path):
    script = tmp_path / "small_demo.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    command = [sys.executable, str(script), str(tmp_path / "out")]
    first = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert first.returncode == 0, first.stderr[-3000:]
    report = tmp_path / "out" / "warehouse" / "runs" / "demo" / "report-blend.html"
    assert f"Report: {report}" in first.stdout
    assert "factors − head bias alone" in first.stdout
    assert "Nearest neighbours" in first.stdout
    page = report.read_text()
    assert "Training from factors" in page
    assert "Masked language modelling" in page
    second = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert "Nothing was left to do" in second.stdout, second.stderr[-3000:]
    assert "incubator" not in second.stderr, "a second run must not start Spark"
    assert second.stdout.split("Took")[0].split("Nothing was left")[0] == first.stdout.split("Took")[0]
