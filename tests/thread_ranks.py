"""Ranks as threads of one process, for tests of many small trainings: collectives through shared memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from wals_spark.cluster.process_group import Group, LocalGroup

T = TypeVar("T")


class ThreadGroup(Group):
    """A rank of some threads; what one hands in, all others see after a barrier."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, slots: list[Any]) -> None:
        self.rank, self.size = rank, size
        self._barrier, self._slots = barrier, slots

    def _share(self, value: Any) -> list[Any]:
        self._slots[self.rank] = value
        self._barrier.wait()
        values = list(self._slots)
        self._barrier.wait()
        return values

    def all_gather(self, array: np.ndarray) -> list[np.ndarray]:
        return [part.copy() for part in self._share(np.array(array))]

    def all_gather_object(self, value: Any) -> list[Any]:
        return self._share(value)

    def all_to_all(self, parts: Sequence[np.ndarray]) -> list[np.ndarray]:
        everything = self._share([np.array(part) for part in parts])
        return [sent[self.rank].copy() for sent in everything]


def run_threads(size: int, program: Callable[[Group], T]) -> list[T]:
    """Run a program on every rank and return what each returned; the first error of any rank is raised."""
    if size == 1:
        return [program(LocalGroup())]
    barrier = threading.Barrier(size)
    slots: list[Any] = [None] * size

    def start(rank: int) -> T:
        try:
            return program(ThreadGroup(rank, size, barrier, slots))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(start, rank) for rank in range(size)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    return [future.result() for future in futures]
