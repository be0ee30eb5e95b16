from __future__ import annotations

import pytest

from wals_spark.cluster.failures import translate
from wals_spark.errors import ConfigError, GateError, InputError, TransientError

JAVA = """An error occurred while calling o42.save.
: org.apache.spark.SparkException: Job aborted due to stage failure: Task 1 in stage 3.0 failed 1 times
  File "x.py", line 3, in f
    raise {error}
{error}

\tat org.apache.spark.api.python.BasePythonRunner.scala:572)
Driver stacktrace:
"""


@pytest.mark.parametrize("kind", [InputError, GateError, TransientError])
def test_our_error_in_a_task_comes_back_as_itself(kind):
    found = translate(RuntimeError(JAVA.format(error=f"wals_spark.errors.{kind.__name__}: part-7 is cut short")))
    assert type(found) is kind
    assert str(found) == "part-7 is cut short"


def test_message_of_two_lines_is_kept():
    found = translate(RuntimeError(JAVA.format(error="wals_spark.errors.InputError: one\ntwo")))
    assert str(found).splitlines()[0] == "one"


@pytest.mark.parametrize(
    "sign", ["ExecutorLostFailure (executor 1 exited)", "java.io.IOException: No space left on device"]
)
def test_lost_executor_and_full_disk_are_transient(sign):
    assert isinstance(translate(RuntimeError(f"Job aborted\n{sign}\n")), TransientError)


def test_a_bug_is_left_as_it_is():
    assert translate(RuntimeError("ZeroDivisionError: division by zero")) is None


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("ModuleNotFoundError: No module named 'pyarrow'", "No module named 'pyarrow'"),
        (
            "[PYTHON_VERSION_MISMATCH] Python in worker has different version: 3.12 than that in driver: 3.11, PySpark",
            "different version: 3.12 than that in driver: 3.11 in",
        ),
    ],
)
def test_another_python_on_the_workers_is_a_matter_of_configuration(reason, message):
    found = translate(RuntimeError(f"An exception was thrown from the Python worker: Traceback:\n{reason}\n\tat a.b"))
    assert isinstance(found, ConfigError)
    assert message in str(found)
    assert "PYSPARK_PYTHON" in str(found)
