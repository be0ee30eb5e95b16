"""Checkpoints under kills and on a full disk."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from wals_spark import storage
from wals_spark.cluster.process_group import LocalGroup
from wals_spark.errors import TransientError
from wals_spark.wals.engine import checkpoint
from wals_spark.wals.engine.rank import run

GROUP = LocalGroup()


class KilledError(BaseException):
    """Like a signal: nothing in the code under test catches it."""


def test_a_kill_before_or_amid_any_write_loses_no_more_than_one_half_sweep(
    make_task, result_of, counts, monkeypatch
) -> None:
    whole = make_task(counts, name="whole", sweeps=3)
    expected = run(whole, GROUP)
    write, written = storage.write_bytes, []

    def count(path: str, content: bytes) -> None:
        written.append(path)
        write(path, content)

    monkeypatch.setattr(storage, "write_bytes", count)
    run(make_task(counts, name="counted", sweeps=3), GROUP)
    writes = len(written)
    assert writes == 7 + 6 + 6 + 2  # shards, manifests, status files, the result
    for last in range(writes):
        task = make_task(counts, name=f"killed-{last}", sweeps=3)
        left = iter(range(last))

        def killed(path: str, content: bytes, left=left) -> None:
            if next(left, None) is None:
                # What a write leaves that is not published by a rename: half of a file under another name.
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                Path(path + ".0123abcd.tmp").write_bytes(content[: len(content) // 2])
                raise KilledError
            write(path, content)

        monkeypatch.setattr(storage, "write_bytes", killed)
        with pytest.raises(KilledError):
            run(task, GROUP)
        monkeypatch.setattr(storage, "write_bytes", write)
        manifests = len([path for path in written[:last] if path.endswith(checkpoint.MANIFEST)])
        result = run(task, GROUP)
        assert result["resumed_at"] == manifests
        assert result["losses"] == expected["losses"]
        assert result_of(task)["row"].tobytes() == result_of(whole)["row"].tobytes()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of 512 KiB; skipped where it cannot be mounted."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(path)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here; it takes root")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk_stops_the_training_and_leaves_its_last_checkpoint(
    make_task, result_of, counts, small_disk
) -> None:
    whole = make_task(counts, name="whole")
    expected = run(whole, GROUP)
    task = make_task(counts, name="full", directory=str(small_disk / "training"))

    def fill(half: int) -> None:
        if half == 3:
            free = shutil.disk_usage(small_disk).free
            (small_disk / "others").write_bytes(bytes(free))

    with pytest.raises(TransientError, match=r"half-00004/.*no space left on the device; free some and run again"):
        run(task, GROUP, fill)
    assert checkpoint.load(task.checkpoints, task.facts).half == 3
    (small_disk / "others").unlink()
    result = run(task, GROUP)
    assert result["resumed_at"] == 3
    assert result["losses"] == expected["losses"]
    assert result_of(task)["col"].tobytes() == result_of(whole)["col"].tobytes()
