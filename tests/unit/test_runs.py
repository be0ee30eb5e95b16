from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from wals_spark import storage
from wals_spark.errors import InputError, TransientError
from wals_spark.runs import Manifest, ManifestStore, Run

HOLD = """
import sys, time
from wals_spark.runs import Run

with Run(sys.argv[1], "r").locked():
    print("held", flush=True)
    time.sleep(60)
"""


def manifest(state: str = "complete", **values: object) -> Manifest:
    return Manifest(stage="train", key="r", state=state, fingerprint="f", run_id="r", **values)


def test_manifest_reads_back_as_written(tmp_path):
    store = ManifestStore(str(tmp_path))
    store.write(manifest(outputs={"k": 3}))
    assert store.find("train", "r") == manifest(outputs={"k": 3})
    assert store.keys("train") == ["r"]


def test_missing_input_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(InputError, match="run `wals-spark train`"):
        ManifestStore(str(tmp_path)).require("train", "r")


def test_unfinished_input_is_refused(tmp_path):
    store = ManifestStore(str(tmp_path))
    store.write(manifest("running"))
    with pytest.raises(InputError, match="not finished"):
        store.require("train", "r")
    assert store.keys("train") == []


def test_manifest_cut_short_is_refused_by_name(tmp_path):
    store = ManifestStore(str(tmp_path))
    store.write(manifest())
    path = tmp_path / "_manifests" / "train" / "r.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(InputError, match=r"r\.json is not JSON"):
        store.find("train", "r")


def test_manifest_of_a_newer_format_is_refused(tmp_path):
    store = ManifestStore(str(tmp_path))
    store.write(manifest())
    path = tmp_path / "_manifests" / "train" / "r.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))
    with pytest.raises(InputError, match="has format 99"):
        store.find("train", "r")


def test_second_command_on_a_run_is_refused_and_a_dead_one_is_not_in_the_way(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline().strip() == "held"
    with pytest.raises(TransientError, match=f"pid {holder.pid}"), Run(str(tmp_path), "r").locked():
        pass
    holder.kill()
    holder.wait()
    deadline = time.monotonic() + 10
    while True:
        try:
            with Run(str(tmp_path), "r").locked():
                break
        except TransientError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_write_is_all_or_nothing(tmp_path, monkeypatch):
    path = str(tmp_path / "f.json")
    storage.write_json(path, {"a": 1})

    def no_space(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(TransientError, match="no space left"):
        storage.write_json(path, {"a": 2})
    assert storage.read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["f.json"]


def test_a_place_that_cannot_be_written_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((InputError, OSError)):
        storage.write_json(str(tmp_path / "file" / "below.json"), {})


def test_unknown_scheme_is_refused():
    with pytest.raises(InputError, match="no file system"):
        storage.exists("nosuch://bucket/key")
