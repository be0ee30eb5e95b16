"""Progress of the tasks of a Spark job: tasks leave small files, which the driver shows."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from wals_spark import storage
from wals_spark.errors import InputError
from wals_spark.progress import Progress

BEAT_S = 2.0
POLL_S = 0.5


class Heartbeat:
    """A task's file, rewritten at most every `BEAT_S` seconds.

    Parameters
    ----------
    directory : str
    name : str
        Of the task; a repeated attempt overwrites the file of the one before.
    """

    def __init__(self, directory: str, name: str) -> None:
        self._path = storage.join(directory, "progress", f"{name}.json")
        self._last = time.monotonic()

    def beat(self, *, last: bool = False, **done: int) -> None:
        """Say what was done so far."""
        now = time.monotonic()
        if last or now - self._last >= BEAT_S:
            self._last = now
            storage.write_json(self._path, done)


class HeartbeatMonitor:
    """Calls `show` with the sum of all heartbeats every `BEAT_S` seconds, while a block of code runs.

    Parameters
    ----------
    directory : str
        Where the tasks write.
    show : callable
        (sums by name, seconds so far) -> None; called in a thread.
    """

    def __init__(self, directory: str, show: Callable[[Counter[str], float], None]) -> None:
        self._directory = storage.join(directory, "progress")
        self._show = show
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wals-spark-progress", daemon=True)

    def _run(self) -> None:
        started = time.monotonic()
        while not self._stop.wait(BEAT_S):
            if done := self.done():
                self._show(done, time.monotonic() - started)

    def done(self) -> Counter[str]:
        """The sum over all tasks."""
        total: Counter[str] = Counter()
        for info in storage.list_files(self._directory):
            if not info.path.endswith(".json"):
                continue
            try:
                total.update(storage.read_json(storage.join(self._directory, info.path.rpartition("/")[2])))
            except (InputError, FileNotFoundError):
                # Being replaced on a store without atomic rename, or removed at the end: the next round counts it.
                continue
        return total

    def __enter__(self) -> HeartbeatMonitor:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()


@contextmanager
def following_status(path: str, show: Callable[[Any], None]) -> Iterator[None]:
    """Call `show` with what a JSON file holds each time that it has changed, while a block of code runs.

    What it held before, from an earlier attempt, is not shown; what it holds at the end is.

    Parameters
    ----------
    path : str
        Rewritten by one task.
    show : callable
        Called in a thread.
    """
    done = threading.Event()
    before = storage.read_json(path) if storage.exists(path) else None

    def follow() -> None:
        shown = before
        while True:
            last_time = done.wait(POLL_S)
            if storage.exists(path):
                status = storage.read_json(path)
                if status != shown:
                    shown = status
                    show(status)
            if last_time:
                return

    thread = threading.Thread(target=follow, name="wals-spark-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def text_progress(label: str, directory: str, text_bytes: float) -> Iterator[None]:
    """Show how much text the tasks of a block of code have read, from heartbeats that count ``bytes``.

    Parameters
    ----------
    label : str
    directory : str
        Where the tasks write.
    text_bytes : float
        Of all there is to read; may be an estimate.
    """

    def show(done: Counter[str], seconds: float) -> None:
        read = done.pop("bytes", 0)
        eta = time_left(seconds, min(1.0, read / max(1.0, text_bytes)))
        facts: dict[str, Any] = {**done, "MB/s": read / 1e6 / seconds, "eta": eta}
        progress.update(round(read / 1e6, 1), **facts)

    with Progress(label, round(text_bytes / 1e6, 1), "MB") as progress, HeartbeatMonitor(directory, show):
        yield


def time_left(seconds: float, share: float) -> str:
    """The time that is left after `seconds` for a share of the work, as a person reads it."""
    if share <= 0:
        return "unknown"
    left = round(seconds * (1 - share) / share)
    return f"{left // 60}m{left % 60:02d}s" if left >= 60 else f"{left}s"
