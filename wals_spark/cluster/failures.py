"""Messages about failed Spark tasks: the cause, found in what Spark reports.

A task's exception arrives at the driver as text within a Java stack within a Python stack. Where that text
holds one of our errors it is raised again as what it was; where it speaks of a lost executor or a full
disk it becomes a `TransientError`, where the workers run another Python than the driver a `ConfigError`.
Anything else stays as it is: a bug keeps its whole traceback.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from wals_spark import errors
from wals_spark.errors import ConfigError, TransientError, WalsSparkError

_OURS = re.compile(
    r"^(?:\S*: )?wals_spark\.errors\.(\w+): (.*?)(?=^\s*(?:at |Caused by|Driver stack|\.\.\. \d+ more|$)|\Z)",
    re.M | re.S,
)
_TRANSIENT = (
    ("ExecutorLostFailure", "an executor was lost"),
    ("No space left on device", "no space left on a device"),
    ("Disk quota exceeded", "a disk quota is used up"),
    ("exited unexpectedly (crashed)", "a Python worker died"),
    ("Python worker failed to connect back", "a Python worker could not be started"),
    ("SparkContext was shut down", "the Spark session ended"),
    ("Slave lost", "an executor was lost"),
)
_NO_MODULE = re.compile(r"ModuleNotFoundError: (No module named '[\w.]+')")
_OTHER_VERSION = re.compile(r"\[PYTHON_VERSION_MISMATCH\] ([^.]*different version[^,]*)")
_SAME_PYTHON = (
    "Spark's workers must run a Python with the driver's minor version and wals_spark installed: set "
    "spark.pyspark.python (or PYSPARK_PYTHON) to its path on the executors, or ship it with spark.archives"
)


def translate(error: BaseException) -> WalsSparkError | None:
    """The error of ours that a Spark failure stands for, or None.

    Parameters
    ----------
    error : exception
        As raised by an action on the driver.
    """
    text = str(error)
    found = _OURS.search(text)
    if found:
        kind = getattr(errors, found.group(1), None)
        if isinstance(kind, type) and issubclass(kind, WalsSparkError):
            return kind(found.group(2).strip())
    for sign, meaning in _TRANSIENT:
        if sign in text:
            line = next(line.strip() for line in text.splitlines() if sign in line)
            return TransientError(
                f"{meaning}: {line[:500]}; run the same command again, it continues from what is done"
            )
    other = _NO_MODULE.search(text) or _OTHER_VERSION.search(text)
    if other and "Python worker" in text:
        return ConfigError(f"{other.group(1)} in a Python worker of Spark; {_SAME_PYTHON}")
    return None


@contextmanager
def translated() -> Iterator[None]:
    """Raise the error that `translate` finds in place of Spark's."""
    try:
        yield
    except WalsSparkError:
        raise
    except Exception as error:
        better = translate(error) if _from_spark(error) else None
        if better is None:
            raise
        raise better from error


def _from_spark(error: BaseException) -> bool:
    return type(error).__module__.startswith(("py4j", "pyspark"))
