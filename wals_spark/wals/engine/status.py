"""Where a training stands, for the driver to show: losses, speed, memory, seconds of each phase."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from wals_spark.wals.engine.system_memory import peak_memory
from wals_spark.wals.engine.task import RankTask
from wals_spark.wals.partition.side import Side


class PhaseTimer:
    """Seconds spent in each kind of work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started


class StatusReport:
    """Makes the content of the status file.

    Parameters
    ----------
    task : RankTask
    half : int
        Half-sweeps done before this run.
    phases : PhaseTimer
    """

    def __init__(self, task: RankTask, half: int, phases: PhaseTimer) -> None:
        self.task, self.first, self.phases = task, half, phases
        self.started = time.monotonic()

    def after(self, half: int, losses: list[float], side: Side) -> dict[str, Any]:
        """After half-sweep `half`, which solved `side`; plain JSON values."""
        half_sweeps = 2 * self.task.config.sweeps
        per_half = (time.monotonic() - self.started) / max(1, half - self.first)
        change = (losses[-2] - losses[-1]) / abs(losses[-2]) if len(losses) > 1 and losses[-2] else None
        return {
            "half_sweep": half,
            "half_sweeps": half_sweeps,
            "sweep": (half + 1) // 2,
            "side": self.task.order[(half - 1) % 2],
            "loss": losses[-1],
            "relative_change": change,
            "seconds_per_half_sweep": round(per_half, 3),
            "cells_per_s": int(side.cell_counts.sum() / per_half) if per_half > 0 else None,
            "eta_s": round(per_half * (half_sweeps - half), 1),
            "peak_memory_bytes": peak_memory(),
            "seconds": {name: round(value, 3) for name, value in self.phases.seconds.items()},
        }
