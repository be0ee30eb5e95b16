"""Progress files."""

from __future__ import annotations

from pathlib import Path

from wals_spark.cooccurrence.watch import Done, Heartbeat, Watch, _eta


def test_the_sum_of_all_tasks_is_shown(tmp_path):
    for task in range(3):
        Heartbeat(str(tmp_path), f"count-{task}").beat(Done(1, 10 * task, 5), last=True)
    Heartbeat(str(tmp_path), "merge-0").beat(Done(cells=7), last=True)
    watch = Watch(str(tmp_path), 30, None, 7.0)
    assert watch.done() == Done(3, 30, 15, 7)


def test_a_repeated_attempt_counts_once_and_a_torn_file_is_skipped(tmp_path):
    for tokens in (5, 9):
        Heartbeat(str(tmp_path), "count-0").beat(Done(1, tokens), last=True)
    (Path(tmp_path) / "progress" / "count-1.json").write_text('{"tok')
    assert Watch(str(tmp_path), 9, None, 1.0).done() == Done(1, 9)


def test_beats_are_rare(tmp_path):
    Heartbeat(str(tmp_path), "count-0").beat(Done(1, 2))
    assert Watch(str(tmp_path), 9, None, 1.0).done() == Done()


def test_time_left():
    assert _eta(10.0, 0.5) == "10s"
    assert _eta(10.0, 0.1) == "1m30s"
    assert _eta(10.0, 0.0) == "unknown"
