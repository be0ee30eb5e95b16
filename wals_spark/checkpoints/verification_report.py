"""The report of a verification: the results of its checks in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_SHOWN = 5


@dataclass(frozen=True)
class CheckResult:
    """Whether one check passed, and a sentence on what it found."""

    name: str
    passed: bool
    detail: str


@dataclass
class VerificationReport:
    """The results of all checks of a checkpoint.

    Attributes
    ----------
    directory : str
    base : str or None
    checks : list of CheckResult
    facts : dict of str to object
        ``rows_changed``, ``displacement``, ``suspicious_rows``.
    """

    directory: str
    base: str | None
    checks: list[CheckResult] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> list[str]:
        """The checks that failed, a line each."""
        return [f"{check.name}: {check.detail}" for check in self.checks if not check.passed]

    def add(self, name: str, passed: bool, detail: str) -> None:
        """Append the result of a check."""
        self.checks.append(CheckResult(name, bool(passed), detail))

    def lines(self) -> list[str]:
        """A line for each check: ok or FAIL, its name, what it found."""
        return [f"{'ok  ' if check.passed else 'FAIL'} {check.name}: {check.detail}" for check in self.checks]


def first_of(names: Sequence[str]) -> str:
    """The first 5 names and the number of the others, for a message."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
