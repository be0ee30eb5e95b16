"""Run one function per rank in a barrier stage, and say whose failure it was when one fails.

A failed barrier stage at the end of a job is never retried by Spark, and the error that Spark reports is that of
whichever task it noticed first. So every rank leaves a record of its start and of its failure in a directory,
and the driver reads the first cause from there.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from wals_spark import errors, storage
from wals_spark.cluster.failures import translate
from wals_spark.cluster.preflight import BarrierPlan
from wals_spark.cluster.process_group import PeerLostError
from wals_spark.errors import TransientError, WalsSparkError

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame

logger = logging.getLogger(__name__)

RECORDS_WAIT_S = 6.0


@dataclass(frozen=True)
class RankContext:
    """The rank of a barrier task, and what Spark gave it.

    Attributes
    ----------
    rank, size : int
    cpus : int
        Of its task.
    gpus : tuple of str
        Addresses that Spark assigned.
    all_gather_text : callable
        Collective: text of this rank -> texts of all.
    """

    rank: int
    size: int
    cpus: int
    gpus: tuple[str, ...]
    all_gather_text: Callable[[str], Sequence[str]]


@dataclass(frozen=True)
class Failure:
    """The end of a rank, as it recorded it itself."""

    rank: int
    host: str
    at: float
    kind: str
    message: str
    traceback: str
    retry_helps: bool
    consequence: bool


RankFunction = Callable[[RankContext, str], str]


def run_barrier(numbers: DataFrame, plan: BarrierPlan, function: RankFunction, payload: str, records: str) -> list[str]:
    """Run ``function(context, payload)`` on every rank at the same time; returns what they return.

    Parameters
    ----------
    numbers : DataFrame
        One partition per rank, see `wals_spark.matrix.placement.one_row_per_rank`.
    plan : BarrierPlan
    function : callable
        Importable on the workers; returns a short text.
    payload : str
        For every rank.
    records : str
        An empty directory for the records of this attempt, reachable by all.

    Returns
    -------
    list of str
        One text per rank.

    Raises
    ------
    WalsSparkError
        The first cause, with the rank, its host and its traceback; `TransientError` where a retry may help.
    """
    body = _body(function, payload, plan.ranks, records)
    try:
        # Collects one short text per rank.
        rows = numbers.mapInArrow(body, "rank int, text string", barrier=True, profile=plan.profile).collect()
    except Exception as error:
        raise first_cause(error, records, plan.ranks) from error
    return [row["text"] for row in sorted(rows, key=lambda row: row["rank"])]


def _body(
    function: RankFunction, payload: str, ranks: int, records: str
) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def body(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa
        from pyspark import BarrierTaskContext

        given = [number for batch in batches for number in batch.column(0).to_pylist()]
        context = BarrierTaskContext.get()
        rank, size = context.partitionId(), len(context.getTaskInfos())
        try:
            if size != ranks or given != [rank]:
                raise WalsSparkError(f"rank {rank} of {size} was given the rows {given}, expected one of {ranks} ranks")
            gpus = context.resources().get("gpu")
            addresses = tuple(gpus.addresses) if gpus is not None else ()
            _record_start(records, rank)
            text = function(RankContext(rank, size, context.cpus(), addresses, context.allGather), payload)
        except BaseException as error:
            _record_failure(records, rank, error)
            raise
        yield pa.RecordBatch.from_pydict({"rank": pa.array([rank], pa.int32()), "text": pa.array([text])})

    return body


def _record_start(records: str, rank: int) -> None:
    facts = {"rank": rank, "host": socket.gethostname(), "pid": os.getpid(), "at": time.time()}
    storage.write_json(storage.join(records, f"started-{rank:05d}.json"), facts)


def _record_failure(records: str, rank: int, error: BaseException) -> None:
    failure = Failure(
        rank=rank,
        host=socket.gethostname(),
        at=time.time(),
        kind=type(error).__name__,
        message=str(error),
        traceback="".join(traceback.format_exception(error)),
        retry_helps=isinstance(error, WalsSparkError) and error.retry_helps,
        consequence=isinstance(error, PeerLostError),
    )
    storage.write_json(storage.join(records, f"failed-{rank:05d}.json"), asdict(failure))


def first_cause(error: Exception, records: str, ranks: int) -> WalsSparkError:
    """The error of the rank that failed first, from the records; the others only lost their peer.

    A rank that started and left no record while others lost it was killed from outside.
    """
    failures, started = _read_records(records)
    causes = sorted((failure for failure in failures if not failure.consequence), key=lambda failure: failure.at)
    if causes:
        return _rebuild(causes[0], ranks)
    silent = sorted(set(started) - {failure.rank for failure in failures})
    if (silent and len(silent) < ranks) or (silent and ranks == 1):
        who = ", ".join(f"rank {rank} (host {started[rank]['host']}, pid {started[rank]['pid']})" for rank in silent)
        return TransientError(
            f"{who} of {ranks} ended without a trace: killed from outside, by the system for lack of memory, or "
            "with its executor; see the executor's log and, for memory, spark.executor.memoryOverhead"
        )
    if failures:
        return _rebuild(failures[0], ranks)
    known = translate(error)
    return known or WalsSparkError(f"the barrier stage failed before any rank could say why: {_spark_reason(error)}")


def _read_records(records: str) -> tuple[list[Failure], dict[int, dict[str, Any]]]:
    """Records of the ranks; waits a moment for those that are still failing."""
    deadline = time.monotonic() + RECORDS_WAIT_S
    while True:
        failures, started = [], {}
        for info in storage.list_files(records):
            name = info.path.rpartition("/")[2]
            if name.startswith("failed-") and name.endswith(".json"):
                failures.append(Failure(**storage.read_json(storage.join(records, name))))
            elif name.startswith("started-") and name.endswith(".json"):
                facts = storage.read_json(storage.join(records, name))
                started[int(facts["rank"])] = facts
        known_cause = any(not failure.consequence for failure in failures)
        if known_cause or len(failures) >= len(started) - 1 >= 1 or time.monotonic() > deadline:
            return failures, started
        time.sleep(0.1)


def _rebuild(failure: Failure, ranks: int) -> WalsSparkError:
    where = f"rank {failure.rank} of {ranks} on {failure.host}"
    known = getattr(errors, failure.kind, None)
    if isinstance(known, type) and issubclass(known, WalsSparkError):
        rebuilt = known(f"{failure.message} ({where})")
    elif failure.retry_helps:
        rebuilt = TransientError(f"{where}: {failure.message}")
    else:
        rebuilt = WalsSparkError(f"{where} failed: {failure.kind}: {failure.message}\n{failure.traceback}")
    rebuilt.add_note(f"Traceback of {where}:\n{failure.traceback}")
    return rebuilt


def _spark_reason(error: Exception) -> str:
    """The lines of Spark's message that say something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reasons = [line for line in lines if "Error" in line or "Exception" in line or "failed" in line]
    return " | ".join(dict.fromkeys(reasons[:6])) or type(error).__name__
