"""Records of arrays in a file without a name, read back ahead of their use.

What a rank cannot hold in memory lies here: the file is unlinked as soon as it is open, so its space returns to the
system however the process ends.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from wals_spark import storage
from wals_spark.errors import TransientError

LARGEST_WRITE = 1 << 30
"""Bytes per system call; Linux moves at most 2^31 - 4096."""

T = TypeVar("T")


class ArrayFile:
    """A list of records, each a tuple of arrays, kept in a temporary file.

    Parameters
    ----------
    directory : str, optional
        On a local disk; None = the system's directory for temporary files.

    Raises
    ------
    InputError
        The directory cannot be written.
    TransientError
        It is full.
    """

    def __init__(self, directory: str | None = None) -> None:
        self._directory = directory or tempfile.gettempdir()
        with storage.explained(f"cannot create a file of matrix blocks in {self._directory} (train.scratch)"):
            self._file = tempfile.TemporaryFile(dir=directory, prefix="wals-blocks-")  # noqa: SIM115  # `close`
        self._end = 0
        self._records: list[list[tuple[int, np.dtype, tuple[int, ...]]]] = []

    def __len__(self) -> int:
        return len(self._records)

    @property
    def nbytes(self) -> int:
        """Length of the file."""
        return self._end

    def append(self, arrays: Sequence[np.ndarray]) -> int:
        """Write a record; returns its number."""
        record = []
        for array in map(np.ascontiguousarray, arrays):
            record.append((self._end, array.dtype, array.shape))
            self._write(array.reshape(-1).view(np.uint8).data)
        self._records.append(record)
        return len(self._records) - 1

    def read(self, number: int) -> list[np.ndarray]:
        """The arrays of a record."""
        return [self._read(*place) for place in self._records[number]]

    def close(self) -> None:
        """Give the space back."""
        self._file.close()

    def _write(self, content: memoryview) -> None:
        done = 0
        action = f"cannot write {self._end / 2**30:.2f} GiB of matrix blocks to {self._directory} (train.scratch)"
        with storage.explained(action):
            while done < len(content):
                done += os.pwrite(self._file.fileno(), content[done : done + LARGEST_WRITE], self._end + done)
        self._end += len(content)

    def _read(self, offset: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
        array = np.empty(shape, dtype)
        target = array.reshape(-1).view(np.uint8).data
        done = 0
        while done < len(target):
            count = os.preadv(self._file.fileno(), [target[done : done + LARGEST_WRITE]], offset + done)
            if count == 0:
                raise TransientError(
                    f"the blocks in {self._directory} end early; the disk or its file system lost them"
                )
            done += count
        return array


def read_ahead(items: Iterable[T]) -> Iterator[T]:
    """The items, each made by a thread while the one before is used; no more than two exist at a time.

    An error in the making is raised where the item is taken.
    """
    iterator = iter(items)
    end = object()
    pool = ThreadPoolExecutor(1, thread_name_prefix="wals-read-ahead")
    try:
        coming = pool.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, iterator, end)
            yield item  # type: ignore[misc]
            del item
    finally:
        # A making that waits for other ranks ends with them; nobody waits for it here.
        pool.shutdown(wait=False, cancel_futures=True)
