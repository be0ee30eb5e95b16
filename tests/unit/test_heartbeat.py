"""Progress of the tasks of a Spark job."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest

from wals_spark import heartbeat, storage
from wals_spark.heartbeat import Heartbeat, HeartbeatMonitor, following_status, text_progress, time_left


def nothing(done, seconds):
    pass


def test_the_sum_of_all_tasks_is_shown(tmp_path):
    for task in range(3):
        Heartbeat(str(tmp_path), f"count-{task}").beat(documents=1, tokens=10 * task, last=True)
    Heartbeat(str(tmp_path), "merge-0").beat(cells=7, last=True)
    assert HeartbeatMonitor(str(tmp_path), nothing).done() == {"documents": 3, "tokens": 30, "cells": 7}


def test_a_repeated_attempt_counts_once_and_a_torn_file_is_skipped(tmp_path):
    for tokens in (5, 9):
        Heartbeat(str(tmp_path), "count-0").beat(tokens=tokens, last=True)
    (Path(tmp_path) / "progress" / "count-1.json").write_text('{"tok')
    assert HeartbeatMonitor(str(tmp_path), nothing).done() == {"tokens": 9}


def test_beats_are_rare(tmp_path):
    Heartbeat(str(tmp_path), "count-0").beat(tokens=2)
    assert HeartbeatMonitor(str(tmp_path), nothing).done() == {}


def test_text_read_is_a_line_with_rate_and_time_left(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.01)
    Heartbeat(str(tmp_path), "0").beat(bytes=3_000_000, documents=12, last=True)
    with caplog.at_level(logging.INFO, "wals_spark"), text_progress("corpus", str(tmp_path), 12e6):
        while not caplog.messages:
            time.sleep(0.005)
    assert caplog.messages[0].startswith("corpus 3/12 MB documents=12 MB/s=")
    assert "eta=" in caplog.messages[0]


def test_time_left():
    assert time_left(10.0, 0.5) == "10s"
    assert time_left(10.0, 0.1) == "1m30s"
    assert time_left(10.0, 0.0) == "unknown"


@pytest.mark.parametrize("left", [None, {"step": 1}])
def test_a_status_file_is_shown_when_it_changes_and_at_the_end(tmp_path, monkeypatch, left):
    monkeypatch.setattr(heartbeat, "POLL_S", 60)
    path = str(tmp_path / "status.json")
    if left is not None:
        storage.write_json(path, left)
    shown = []
    with following_status(path, shown.append):
        storage.write_json(path, {"step": 2})
    assert shown == [{"step": 2}]
    with following_status(path, shown.append):
        pass
    assert shown == [{"step": 2}]
