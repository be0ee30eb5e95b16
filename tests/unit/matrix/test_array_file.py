"""Arrays in a file without a name."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from wals_spark.errors import InputError
from wals_spark.matrix import array_file
from wals_spark.matrix.array_file import ArrayFile, read_ahead

RECORDS = [
    [np.arange(7, dtype=np.int64), np.array([1.5, -2.5], np.float32)],
    [np.zeros(0, np.int32), np.arange(12, dtype=np.float64).reshape(3, 4)],
    [np.array([2**40])],
]


def same(found: list[np.ndarray], expected: list[np.ndarray]) -> bool:
    return all(
        np.array_equal(a, b) and a.dtype == b.dtype and a.shape == b.shape for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("at_once", [5, 1 << 30])
def test_records_come_back_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(array_file, "LARGEST_WRITE", at_once)
    file = ArrayFile(str(tmp_path))
    for record in RECORDS:
        file.append(record)
    assert len(file) == 3
    assert file.nbytes == 56 + 8 + 96 + 8
    for number in (2, 0, 1):
        assert same(file.read(number), RECORDS[number])


def test_the_file_has_no_name_and_can_be_longer_than_32_bits_count(tmp_path: Path) -> None:
    file = ArrayFile(str(tmp_path))
    file._end = (1 << 32) + 3
    for record in RECORDS:
        file.append(record)
    assert same(file.read(1), RECORDS[1])
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("")
    with pytest.raises(InputError, match=r"matrix blocks in .*file \(train.scratch\)"):
        ArrayFile(str(occupied))


FULL_PROGRAM = """
import resource, signal, sys
import numpy as np
from wals_spark.errors import TransientError
from wals_spark.matrix.array_file import ArrayFile
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
file = ArrayFile(sys.argv[1])
try:
    for _ in range(20):
        file.append([np.zeros(100_000, np.uint8)])
except TransientError as error:
    print(len(file), error)
"""


def test_a_full_disk_is_said_with_the_key_to_change(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_PROGRAM, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.startswith("10 cannot write")
    assert "train.scratch" in done.stdout
    assert "no space left" in done.stdout


def test_items_are_made_one_ahead_and_in_order() -> None:
    made, second = [], threading.Event()

    def items():
        for number in range(4):
            made.append(number)
            if number == 1:
                second.set()
            yield number

    taken = read_ahead(items())
    assert next(taken) == 0
    assert second.wait(10)
    assert max(made) == 1
    assert list(taken) == [1, 2, 3]


def test_an_error_in_the_making_is_raised_where_the_item_is_taken() -> None:
    def items():
        yield 1
        raise InputError("broken")

    taken = read_ahead(items())
    assert next(taken) == 1
    with pytest.raises(InputError, match="broken"):
        next(taken)
