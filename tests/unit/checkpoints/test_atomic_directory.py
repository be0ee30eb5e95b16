from __future__ import annotations

import os
import shutil

import pytest

from wals_spark.checkpoints.atomic_directory import staged_directory
from wals_spark.errors import InputError


def names(directory):
    return sorted(os.listdir(directory))


def test_nothing_is_seen_before_the_end(tmp_path):
    with staged_directory(str(tmp_path / "a" / "out"), replace=False) as staging:
        (staging / "x").write_text("1")
        assert not (tmp_path / "a" / "out").exists()
    assert names(tmp_path / "a") == ["out"]
    assert (tmp_path / "a" / "out" / "x").read_text() == "1"


def test_a_failure_leaves_nothing_behind(tmp_path):
    with pytest.raises(ZeroDivisionError), staged_directory(str(tmp_path / "out"), replace=False) as staging:
        (staging / "x").write_text(str(1 / 0))
    assert names(tmp_path) == []


def test_an_existing_directory_is_refused_before_any_work(tmp_path):
    (tmp_path / "out").mkdir()
    with (
        pytest.raises(InputError, match=r"inject\.overwrite=true"),
        staged_directory(str(tmp_path / "out"), replace=False),
    ):
        raise AssertionError("the block ran")


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="is a file"), staged_directory(str(tmp_path / "out"), replace=True):
        raise AssertionError("the block ran")


@pytest.mark.parametrize("swaps", [True, False])
def test_replacing_swaps_whole_directories(tmp_path, monkeypatch, swaps):
    if not swaps:
        monkeypatch.setattr("wals_spark.checkpoints.atomic_directory._swap_names", lambda first, second: False)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("1")
    with staged_directory(str(tmp_path / "out"), replace=True) as staging:
        (staging / "new").write_text("2")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["new"]


def test_a_failure_while_replacing_keeps_the_old_one(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("1")
    with pytest.raises(RuntimeError), staged_directory(str(tmp_path / "out"), replace=True):
        raise RuntimeError
    assert names(tmp_path / "out") == ["old"]


def test_a_directory_that_appears_meanwhile_is_left_alone(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "x").write_text("1")
    with (
        pytest.raises(InputError, match="appeared while"),
        staged_directory(str(tmp_path / "out"), replace=False),
    ):
        shutil.copytree(tmp_path / "theirs", tmp_path / "out")
    assert names(tmp_path / "out") == ["x"]


def test_other_file_systems_get_the_manifest_last(tmp_path, monkeypatch):
    monkeypatch.setattr("wals_spark.checkpoints.atomic_directory.storage.is_local", lambda uri: False)
    with staged_directory(str(tmp_path / "out"), replace=False) as staging:
        for name in ("injection.json", "config.json", "model.safetensors"):
            (staging / name).write_text(name)
    assert names(tmp_path / "out") == ["config.json", "injection.json", "model.safetensors"]
    newest = max((tmp_path / "out").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert newest.name == "injection.json"
