"""Compiled code is kept until anything that it is made of changes, and a missing place for it is no error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CALLER = """
from wals_spark.compiled import compiled
from wals_spark.a_middle import passed_on

@compiled(nogil=True)
def call(x):
    return passed_on(x)
"""
MIDDLE = """
from wals_spark.compiled import compiled
from wals_spark.a_callee import called

@compiled()
def passed_on(x):
    return called(x)
"""
CALLEE = """
from wals_spark.compiled import compiled

@compiled(inline="always")
def called(x):
    return x + {added}
"""
PROGRAM = """
import sys
import wals_spark
wals_spark.__path__.append({directory!r})
from wals_spark.a_caller import call
print(call(1), sum(call.stats.cache_hits.values()))
"""


def run(directory: Path, **environment: str) -> tuple[list[int], str]:
    """What the kernel gives in a process of its own, how much of it came from disk, and what was said."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(directory=str(directory))],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return [int(number) for number in done.stdout.split()], done.stderr


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    (tmp_path / "a_caller.py").write_text(CALLER)
    (tmp_path / "a_middle.py").write_text(MIDDLE)
    (tmp_path / "a_callee.py").write_text(CALLEE.format(added=1))
    return tmp_path


def test_code_is_taken_from_disk_the_second_time(modules: Path) -> None:
    assert run(modules) == ([2, 0], "")
    assert run(modules) == ([2, 1], "")


def test_a_change_two_files_away_is_noticed(modules: Path) -> None:
    run(modules)
    (modules / "a_callee.py").write_text(CALLEE.format(added=5))
    assert run(modules) == ([6, 0], "")


def test_code_of_a_former_state_is_found_again(modules: Path) -> None:
    run(modules)
    (modules / "a_callee.py").write_text(CALLEE.format(added=5))
    run(modules)
    (modules / "a_callee.py").write_text(CALLEE.format(added=1))
    assert run(modules) == ([2, 1], "")


def test_without_a_place_to_keep_it_code_runs_and_a_warning_says_how_to_give_one(modules: Path) -> None:
    (modules / "__pycache__").write_text("a file where numba wants a directory")
    (modules / "nowhere").write_text("and another one")
    numbers, said = run(modules, HOME=str(modules / "nowhere"), XDG_CACHE_HOME=str(modules / "nowhere"))
    assert numbers == [2, 0]
    assert said.count("set NUMBA_CACHE_DIR") == 1


def test_without_compilation_functions_stay_python() -> None:
    numba_off = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    program = (
        "from wals_spark.compiled import compiled; f = compiled(nogil=True)(lambda x: x + 1); print(f(1), type(f))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=numba_off)
    assert done.stdout.split() == ["2", "<class", "'function'>"]
