"""The archive of Spark's classes: made once, used when whole, never in the way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wals_spark.cluster import class_archive


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the archive belongs, in an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(class_archive.SWITCH, raising=False)
    path = class_archive.archive_path()
    if path is None:
        pytest.skip("no Java")
    return path


def test_the_first_session_leaves_an_archive_and_others_meanwhile_do_without(archive: Path) -> None:
    assert f"-XX:ArchiveClassesAtExit={archive.with_suffix('.draft')}" in class_archive.java_options()
    assert class_archive.java_options() == ""


def test_a_whole_draft_is_adopted_and_used(archive: Path) -> None:
    class_archive.java_options()
    archive.with_suffix(".draft").write_bytes(class_archive.MAGIC + b"rest")
    assert f"-XX:SharedArchiveFile={archive}" in class_archive.java_options()
    assert archive.read_bytes() == class_archive.MAGIC + b"rest"
    assert sorted(path.name for path in archive.parent.iterdir()) == [archive.name]


def test_archives_of_environments_that_are_gone_do_not_pile_up(archive: Path) -> None:
    class_archive.java_options()
    for age in range(5):
        old = archive.with_name(f"spark-classes-{age}.jsa")
        old.write_bytes(class_archive.MAGIC)
        os.utime(old, (1000 - age, 1000 - age))
    archive.with_suffix(".draft").write_bytes(class_archive.MAGIC)
    class_archive.java_options()
    names = sorted(path.name for path in archive.parent.iterdir())
    assert names == sorted([archive.name, "spark-classes-0.jsa", "spark-classes-1.jsa"])


def test_a_draft_that_was_cut_short_is_never_used_and_made_again(archive: Path) -> None:
    class_archive.java_options()
    archive.with_suffix(".draft").write_bytes(bytes(100))
    assert class_archive.java_options() == ""
    lock = archive.with_suffix(".making")
    os.utime(lock, (0, 0))
    assert "ArchiveClassesAtExit" in class_archive.java_options()
    assert not archive.with_suffix(".draft").exists()


def test_a_cache_that_cannot_be_written_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert class_archive.java_options() == ""


@pytest.mark.parametrize("value", ["off", "0", "False"])
def test_it_can_be_turned_off(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(class_archive.SWITCH, value)
    assert class_archive.java_options() == ""
