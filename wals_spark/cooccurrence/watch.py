"""Progress of a counting job: tasks leave small files, the driver adds them up into one line."""

from __future__ import annotations

import threading
import time
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

from wals_spark import storage
from wals_spark.errors import InputError
from wals_spark.progress import Progress

BEAT_S = 2.0


@dataclass
class Done:
    """What a task, or all tasks, have done so far.

    Attributes
    ----------
    documents, tokens : int
        Read and counted.
    pairs : int
        Distinct pairs of counted pieces; they are summed into fewer.
    cells : int
        Written.
    """

    documents: int = 0
    tokens: int = 0
    pairs: int = 0
    cells: int = 0


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

    def beat(self, done: Done, *, last: bool = False) -> None:
        """Say what was done so far."""
        now = time.monotonic()
        if last or now - self._last >= BEAT_S:
            self._last = now
            storage.write_json(self._path, asdict(done))


class Watch:
    """Shows the sum of all heartbeats while a block of code runs.

    Parameters
    ----------
    directory : str
        Where the tasks write.
    tokens : int
        Of the whole batch.
    text_bytes : int or None
        Of its documents, for the rate in MB/s.
    cells : float
        Expected non-zeros.
    """

    def __init__(self, directory: str, tokens: int, text_bytes: int | None, cells: float) -> None:
        self._directory = storage.join(directory, "progress")
        self._tokens, self._bytes, self._cells = tokens, text_bytes, cells
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wals-spark-progress", daemon=True)

    def _run(self) -> None:
        started = time.monotonic()
        with Progress("count", self._tokens, "tokens") as counting, Progress("merge", None, "non-zeros") as merging:
            while not self._stop.wait(BEAT_S):
                done = self.done()
                seconds = time.monotonic() - started
                if done.cells:
                    merging.update(done.cells, expected=round(self._cells), eta=_eta(seconds, self._share(done)))
                elif done.tokens:
                    share = done.tokens / max(1, self._tokens)
                    rate: dict[str, Any] = {"MB/s": self._bytes * share / 1e6 / seconds} if self._bytes else {}
                    counting.update(
                        done.tokens,
                        documents=done.documents,
                        pairs=done.pairs,
                        **rate,
                        eta=_eta(seconds, self._share(done)),
                    )

    def _share(self, done: Done) -> float:
        """Counting and merging take about as long."""
        return 0.5 * done.tokens / max(1, self._tokens) + 0.5 * min(1.0, done.cells / max(1.0, self._cells))

    def done(self) -> Done:
        """The sum over all tasks."""
        total = Done()
        for info in storage.list_files(self._directory):
            if not info.path.endswith(".json"):
                continue
            try:
                found = storage.read_json(storage.join(self._directory, info.path.rpartition("/")[2]))
            except (InputError, FileNotFoundError):
                # Being replaced on a store without atomic rename, or removed at the end: the next round counts it.
                continue
            total = Done(**{name: value + found[name] for name, value in asdict(total).items()})
        return total

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()


def _eta(seconds: float, share: float) -> str:
    if share <= 0:
        return "unknown"
    left = round(seconds * (1 - share) / share)
    return f"{left // 60}m{left % 60:02d}s" if left >= 60 else f"{left}s"
