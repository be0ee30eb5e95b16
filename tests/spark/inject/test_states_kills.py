"""kill -9 on `wals-spark states` once it has a part: the same command again goes on from there, to the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from wals_spark.inject.fit.stages import StatesStage
from wals_spark.stage import run_stage

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(600)]

SPARK_CONF = {"spark.master": "local[2]", "spark.driver.memory": "1g", "spark.ui.enabled": "false"}


def settings_of(context):
    names = ("warehouse", "run_id", "vocabulary", "states", "inject")
    dumped = context.config.dump()
    return {**{name: dumped[name] for name in names}, "spark": {"conf": SPARK_CONF}}


def test_states_that_are_killed_end_with_the_same_parts(text_context, tmp_path):
    values = {"states__part_sequences": 2, "states__maskings": 20}
    undisturbed, _ = run_stage(text_context(run_id="undisturbed", **values), StatesStage())
    context = text_context(run_id="killed", **values)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings_of(context)))
    home = Path(context.run.path("states"))
    with (tmp_path / "log").open("wb") as log:
        line = [sys.executable, "-m", "wals_spark.cli", "states", "--config", str(config)]
        process = subprocess.Popen(line, start_new_session=True, stderr=log)
    try:
        while process.poll() is None and not list(home.glob("*/part-*.arrow")):
            time.sleep(0.001)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    left = {path: path.stat().st_mtime_ns for path in home.glob("*/part-*.arrow")}
    assert 0 < len(left) < 20
    assert not context.manifests.find("states", "killed").complete
    manifest, _ = run_stage(context, StatesStage())
    assert {path: path.stat().st_mtime_ns for path in left} == left
    assert not list(home.glob("*/*.tmp"))
    parts = [sorted(Path(found.outputs["directory"]).glob("part-*.arrow")) for found in (undisturbed, manifest)]
    assert len(parts[0]) == len(parts[1]) >= 20
    assert [path.name for path in parts[0]] == [path.name for path in parts[1]]
    assert manifest.outputs["splits"] == undisturbed.outputs["splits"]
