"""Progress of long work: a bar on a terminal, one line per step in a log."""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Any

from tqdm import tqdm

logger = logging.getLogger("wals_spark")


def setup_logging() -> None:
    """Log lines to standard error, for commands; a library user's own logging is left alone."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    level = os.environ.get("WALS_SPARK_LOG_LEVEL", "INFO").upper()
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
        logger.propagate = False
    logger.setLevel(level)
    for noisy in ("py4j", "transformers", "huggingface_hub", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


class Progress:
    """Progress towards a known or unknown total.

    Parameters
    ----------
    label : str
        What is being done, for example ``train``.
    total : float, optional
        Where it ends; None when unknown.
    unit : str
    every_s : float
        Seconds between two lines of a log, at least; `update` with ``line=True`` does not wait for them.
    """

    def __init__(self, label: str, total: float | None, unit: str = "", every_s: float = 5.0) -> None:
        self.label, self.total, self.unit, self.every_s = label, total, unit, every_s
        self.started = time.monotonic()
        self._last_line = 0.0
        self._bar: Any = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, desc=label, unit=unit or "it", leave=False, dynamic_ncols=True)

    def update(self, done: float, *, line: bool = False, **facts: Any) -> None:
        """Set the progress to `done`; `facts` are shown beside it, ``line=True`` forces a log line."""
        shown = " ".join(f"{key}={_short(value)}" for key, value in facts.items())
        if self._bar is not None:
            self._bar.n = done
            self._bar.set_postfix_str(shown, refresh=True)
            return
        now = time.monotonic()
        if line or now - self._last_line >= self.every_s:
            self._last_line = now
            of = f"{_short(done)}/{_short(self.total)}" if self.total is not None else _short(done)
            logger.info("%s %s %s %s", self.label, of, self.unit, shown)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int) and abs(value) >= 100_000:
        return f"{value:,}"
    return str(value)
