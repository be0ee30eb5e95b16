"""The errors of the package; each knows its exit code and whether a retry can help.

Exit codes (also of ``spark-submit`` in client mode):

====  =====================================================================
0     done, or already done
1     a bug in wals_spark
2     bad configuration or bad input: a retry gives the same answer
3     a quality gate said no
75    transient: the same command may succeed later
====  =====================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EXIT_DONE = 0
EXIT_BUG = 1
EXIT_BAD_INPUT = 2
EXIT_GATE = 3
EXIT_TRANSIENT = 75


class WalsSparkError(Exception):
    """Base of every error that wals_spark raises on purpose.

    A message says what was found, what was expected and what to change.
    """

    exit_code: int = EXIT_BUG
    retry_helps: bool = False


class ConfigError(WalsSparkError):
    """The configuration is wrong: an unknown key, a value out of range, two keys that contradict."""

    exit_code = EXIT_BAD_INPUT


class InputError(WalsSparkError):
    """The data is wrong: a missing path, a wrong column, NaN where a number is needed."""

    exit_code = EXIT_BAD_INPUT


class GateError(WalsSparkError):
    """A quality gate refused the result; nothing was published.

    Parameters
    ----------
    message : str
    details : mapping, optional
        The figures behind the refusal, as plain JSON values: they go into the stage's manifest.
    """

    exit_code = EXIT_GATE

    def __init__(self, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.details = dict(details or {})


class TransientError(WalsSparkError):
    """Something outside failed (a lost executor, a full disk, a lock held by another run)."""

    exit_code = EXIT_TRANSIENT
    retry_helps = True
