from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys

import pytest

from wals_spark import storage
from wals_spark.checkpoints import atomic_directory
from wals_spark.checkpoints.atomic_directory import staged_directory
from wals_spark.errors import InputError

MODULE = "wals_spark.checkpoints.atomic_directory"


def names(directory):
    return sorted(os.listdir(directory))


def earlier(directory, **files):
    """An earlier result: a manifest and the files that it lists."""
    directory.mkdir(parents=True)
    for name, text in (files or {"old": "1"}).items():
        (directory / name).write_text(text)
    listed = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}
    (directory / "injection.json").write_text(json.dumps({"format": "wals_spark injection", "files": listed}))
    return directory


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


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
@pytest.mark.parametrize("empty", [True, False])
def test_replacing_swaps_whole_directories(tmp_path, monkeypatch, swaps, empty):
    if not swaps:
        monkeypatch.setattr(f"{MODULE}._swap_names", lambda first, second: False)
    if empty:
        (tmp_path / "out").mkdir()
    else:
        earlier(tmp_path / "out")
    with staged_directory(str(tmp_path / "out"), replace=True) as staging:
        (staging / "new").write_text("2")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["new"]


def test_a_failure_while_replacing_keeps_the_old_one(tmp_path):
    before = contents(earlier(tmp_path / "out"))
    with pytest.raises(RuntimeError), staged_directory(str(tmp_path / "out"), replace=True):
        raise RuntimeError
    assert contents(tmp_path / "out") == before
    assert names(tmp_path) == ["out"]


def test_the_old_one_comes_back_when_the_rename_fails(tmp_path, monkeypatch):
    before = contents(earlier(tmp_path / "out"))
    real = os.rename

    def rename(source, target):
        if ".staging" in str(source) and str(target).endswith("out"):
            raise OSError(errno.EIO, "broken disk")
        real(source, target)

    monkeypatch.setattr(f"{MODULE}._swap_names", lambda first, second: False)
    monkeypatch.setattr(f"{MODULE}.os.rename", rename)
    with (
        pytest.raises(OSError, match="broken disk"),
        staged_directory(str(tmp_path / "out"), replace=True) as staging,
    ):
        (staging / "new").write_text("2")
    assert contents(tmp_path / "out") == before
    assert names(tmp_path) == ["out"]


def test_the_old_one_stays_when_the_swap_fails(tmp_path, monkeypatch):
    before = contents(earlier(tmp_path / "out"))

    def fails(first, second):
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(f"{MODULE}._swap_names", fails)
    with pytest.raises(OSError, match="broken disk"), staged_directory(str(tmp_path / "out"), replace=True):
        pass
    assert contents(tmp_path / "out") == before
    assert names(tmp_path) == ["out"]


KILLED = """
import os, sys
from wals_spark.checkpoints import atomic_directory
output, swaps, last = sys.argv[1], sys.argv[2] == "True", int(sys.argv[3])
done = 0
def counted(real):
    def call(*arguments):
        global done
        result = real(*arguments)
        done += 1
        if done == last:
            os._exit(9)
        return result
    return call
atomic_directory.os.rename = counted(os.rename)
atomic_directory._swap_names = counted(atomic_directory._swap_names) if swaps else lambda first, second: False
with atomic_directory.staged_directory(output, replace=True) as staging:
    (staging / "injection.json").write_text('{"format": "wals_spark injection", "files": {}}')
"""


@pytest.mark.parametrize(("swaps", "last"), [(True, 1), (True, 2), (False, 1), (False, 2), (False, 3), (False, 4)])
def test_a_kill_between_the_renames_loses_nothing(tmp_path, swaps, last):
    out = tmp_path / "out"
    before = contents(earlier(out))
    done = subprocess.run([sys.executable, "-c", KILLED, str(out), str(swaps), str(last)], check=False)
    assert done.returncode == 9
    finished = last == (2 if swaps else 4)
    replaced = finished or (not swaps and last == 3)
    assert contents(tmp_path / "out.old" if replaced else out) == before
    assert out.exists() == (finished or not replaced)
    if finished:
        assert names(out) == ["injection.json"]
    kept = {path.name: contents(path) for path in tmp_path.iterdir() if path.name.startswith("out.old")}
    with staged_directory(str(out), replace=True) as staging:  # the next run gets through and leaves the .old alone
        (staging / "newer").write_text("3")
    assert names(out) == ["newer"]
    assert {path.name: contents(path) for path in tmp_path.iterdir() if path.name.startswith("out.old")} == kept


def test_a_file_that_comes_while_it_is_replaced_is_kept(tmp_path, monkeypatch):
    earlier(tmp_path / "out")
    real = atomic_directory._swap_names

    def swap(first, second):
        (second / "theirs").write_text("3")
        return real(first, second)

    monkeypatch.setattr(f"{MODULE}._swap_names", swap)
    with staged_directory(str(tmp_path / "out"), replace=True) as staging:
        (staging / "new").write_text("2")
    assert names(tmp_path / "out") == ["new"]
    assert (tmp_path / "out.old" / "theirs").read_text() == "3"


def test_a_file_that_comes_meanwhile_is_found_before_publishing(tmp_path):
    earlier(tmp_path / "out")
    with (
        pytest.raises(InputError, match=r"notes\.txt not written by wals_spark"),
        staged_directory(str(tmp_path / "out"), replace=True),
    ):
        (tmp_path / "out" / "notes.txt").write_text("mine")
    assert names(tmp_path / "out") == ["injection.json", "notes.txt", "old"]


def test_a_directory_that_appears_meanwhile_is_left_alone(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "x").write_text("1")
    with (
        pytest.raises(InputError, match="appeared while"),
        staged_directory(str(tmp_path / "out"), replace=False),
    ):
        shutil.copytree(tmp_path / "theirs", tmp_path / "out")
    assert names(tmp_path / "out") == ["x"]


@pytest.fixture
def remote(monkeypatch):
    """Every path counts as one of an object store."""
    monkeypatch.setattr("wals_spark.storage.is_local", lambda uri: False)


def test_other_file_systems_get_the_manifest_last(tmp_path, remote):
    with staged_directory(str(tmp_path / "out"), replace=False) as staging:
        for name in ("injection.json", "config.json", "model.safetensors"):
            (staging / name).write_text(name)
    assert names(tmp_path / "out") == ["config.json", "injection.json", "model.safetensors"]
    newest = max((tmp_path / "out").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert newest.name == "injection.json"


def test_an_object_store_keeps_what_is_not_an_earlier_result(tmp_path, remote):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with (
        pytest.raises(InputError, match="is not an earlier result"),
        staged_directory(str(tmp_path / "out"), replace=True),
    ):
        raise AssertionError("the block ran")
    assert names(tmp_path / "out") == ["notes.txt"]


def test_an_object_store_replaces_an_earlier_result(tmp_path, remote):
    earlier(tmp_path / "out")
    with staged_directory(str(tmp_path / "out"), replace=True) as staging:
        (staging / "new").write_text("2")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["new"]


def test_an_upload_that_fails_brings_the_old_one_back(tmp_path, remote, monkeypatch):
    before = contents(earlier(tmp_path / "out"))

    def fails(staging, output):
        storage.make_directory(output)
        storage.write_bytes(storage.join(output, "half"), b"")
        assert contents(tmp_path / "out.old") == before
        raise RuntimeError

    monkeypatch.setattr(f"{MODULE}._copy_files", fails)
    with pytest.raises(RuntimeError), staged_directory(str(tmp_path / "out"), replace=True):
        pass
    assert contents(tmp_path / "out") == before
    assert names(tmp_path) == ["out"]


def test_an_upload_that_was_killed_is_made_again(tmp_path, remote, monkeypatch):
    staging = earlier(tmp_path / "staging", a="1", b="2")
    real = atomic_directory.pafs.copy_files

    def killed(*arguments, **options):
        real(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(f"{MODULE}.pafs.copy_files", killed)
    with pytest.raises(KeyboardInterrupt):
        atomic_directory._copy_files(staging, str(tmp_path / "out"))
    assert "injection.json" not in names(tmp_path / "out")
    monkeypatch.undo()
    monkeypatch.setattr("wals_spark.storage.is_local", lambda uri: False)
    with staged_directory(str(tmp_path / "out"), replace=True) as made:
        (made / "injection.json").write_text("{}")
    assert names(tmp_path / "out") == ["injection.json"]
