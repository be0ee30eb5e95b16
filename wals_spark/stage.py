"""What a stage is, and the one function through which every stage runs.

`run_stage` decides whether there is anything to do, marks the output as unfinished, runs the stage,
writes its metrics, and marks the output as complete. A `Stage` only turns its inputs into its
outputs; skipping, resuming, fingerprints and locks are the work of `run_stage`.
"""

from __future__ import annotations

import logging
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, cast

from wals_spark import schemas, storage
from wals_spark.cluster.failures import translated
from wals_spark.config import Config, fingerprint
from wals_spark.errors import GateError
from wals_spark.runs import Manifest, ManifestStore, Run, RunLock, now, package_versions
from wals_spark.stage_outputs import STAGE_OF, Outputs, StageOutputs, TableSlice, outputs_of
from wals_spark.tables import TableStore, open_tables

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Metric:
    """A number that a stage reports; `low` and `high` bound its 95 % interval where there is one."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    step: int | None = None


@dataclass
class Outcome:
    """What a stage made.

    Attributes
    ----------
    outputs : mapping
        Facts for the manifest, of the stage's type in `wals_spark.stage_outputs`.
    metrics : list of Metric
    lines : list of str
        What a person should read at the end, in a few lines.
    """

    outputs: Mapping[str, Any] = field(default_factory=dict)
    metrics: list[Metric] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


class Context:
    """What every part of a command shares: configuration, run, manifests, tables, session.

    Parameters
    ----------
    config : Config
    session : callable, optional
        Gives the Spark session; None = one is opened from the configuration when first needed.

    Attributes
    ----------
    config : Config
        With the absolute path of the warehouse.
    run : Run
    manifests : ManifestStore
    tables : TableStore
    """

    def __init__(self, config: Config, session: Callable[[], SparkSession] | None = None) -> None:
        warehouse = storage.absolute(config.warehouse)
        self.config = config.model_copy(update={"warehouse": warehouse})
        self.run = Run(warehouse, config.run_id)
        self.manifests = ManifestStore(warehouse)
        self._open = session
        self._spark: SparkSession | None = None
        self.tables: TableStore = open_tables(config.table_format, warehouse, lambda: self.spark)

    @property
    def spark(self) -> SparkSession:
        """The session, started when first needed."""
        if self._spark is None:
            if self._open is not None:
                self._spark = self._open()
            else:
                from wals_spark.cluster.session import open_session

                self._spark = open_session(self.config)
        return self._spark

    def table_output(self, table: schemas.Table, where: Mapping[str, str]) -> dict[str, TableSlice]:
        """The entry of ``Outcome.outputs["tables"]`` for a slice just written."""
        return {table.name: {"where": dict(where), "version": self.tables.version(table, where)}}

    @contextmanager
    def scratch(self, name: str) -> Iterator[str]:
        """A directory of the warehouse that is gone afterwards; what a killed command left there goes first.

        `name` identifies one output of one stage, whose lock the caller has.
        """
        base = storage.join(self.manifests.warehouse, "_scratch", name)
        storage.remove(base)
        directory = storage.join(base, uuid.uuid4().hex[:8])
        storage.make_directory(directory)
        try:
            yield directory
        finally:
            storage.remove(base)

    def stop(self) -> None:
        """Stop a session that was started here."""
        if self._spark is not None and self._open is None:
            self._spark.stop()
            self._spark = None


@dataclass(frozen=True)
class StageRun:
    """One run of a stage: the shared context and what belongs to this run alone.

    Attributes
    ----------
    context : Context
    inputs : mapping of (str, str) to Manifest
        (stage, key) -> complete manifest, of all outputs that this stage reads.
    fingerprint : str
        Of the output being made; a checkpoint that carries another one must not be resumed.
    """

    context: Context
    inputs: Mapping[tuple[str, str], Manifest]
    fingerprint: str

    def input(self, stage: str) -> Manifest:
        """The only input manifest of a stage."""
        found = [manifest for (name, _), manifest in self.inputs.items() if name == stage]
        assert len(found) == 1, f"{len(found)} inputs of {stage}"
        return found[0]

    def outputs(self, kind: type[Outputs]) -> Outputs:
        """What the only input of the stage that makes this kind of outputs wrote into its manifest."""
        return outputs_of(self.input(STAGE_OF[kind]), kind)

    def inputs_of(self, stage: str) -> list[Manifest]:
        """All input manifests of a stage, by key."""
        return [manifest for (name, _), manifest in sorted(self.inputs.items()) if name == stage]


class Stage(ABC):
    """A stage of the pipeline; subclasses live in the module ``stages`` of their package.

    Attributes
    ----------
    name : str
    sections : tuple of str
        Configuration sections whose keys determine the output; ``seed`` and ``table_format`` always do.
    """

    name: ClassVar[str]
    sections: ClassVar[tuple[str, ...]]

    @abstractmethod
    def key(self, config: Config) -> str:
        """Which of its outputs this configuration makes: a batch id, a run id or an injection."""

    @abstractmethod
    def inputs(self, config: Config, manifests: ManifestStore) -> Sequence[tuple[str, str]]:
        """The (stage, key) pairs of the outputs it reads."""

    @abstractmethod
    def run(self, stage_run: StageRun) -> Outcome:
        """Make the output."""

    def check(self, config: Config) -> None:  # noqa: B027  # most stages need no check
        """Raise, before any stage starts, when the configuration or an external input cannot work."""

    def identity(self, config: Config) -> Any:
        """The identities of external inputs (paths with sizes and times, hashes), part of the fingerprint."""
        return None

    def enabled(self, config: Config) -> bool:
        """Whether the pipeline runs it."""
        return True

    def label(self, config: Config) -> str:
        """The value of the column ``stage`` of its metrics."""
        return self.name

    def settings(self, config: Config) -> dict[str, Any]:
        """The part of the configuration that determines the output."""
        return {
            "seed": config.seed,
            "table_format": config.table_format,
            **{name: getattr(config, name).result_keys() for name in self.sections},
        }

    def fingerprint(self, context: Context, inputs: Mapping[tuple[str, str], Manifest]) -> str:
        """The hash of all that determines the output: settings, inputs, external identities."""
        return fingerprint(
            {
                "stage": self.name,
                "settings": self.settings(context.config),
                "inputs": {f"{stage}/{key}": _state(manifest) for (stage, key), manifest in inputs.items()},
                "identity": self.identity(context.config),
            }
        )


def _state(manifest: Manifest) -> str:
    """The fingerprint of an output, with the hash of its content where a stage that runs again may make another."""
    content = manifest.outputs.get("content")
    return manifest.fingerprint if content is None else f"{manifest.fingerprint}.{content}"


def is_done(context: Context, manifest: Manifest | None, expected: str) -> bool:
    """Whether an output is complete, current and still there."""
    if manifest is None or not manifest.complete or manifest.fingerprint != expected:
        return False
    outputs = cast(StageOutputs, manifest.outputs)
    for name, entry in outputs.get("tables", {}).items():
        table = schemas.TABLES[name]
        if context.tables.format == "parquet":
            if context.tables.version(table, entry["where"]) != entry["version"]:
                logger.info("%s: its table %s has changed since", manifest.stage, name)
                return False
        elif not storage.exists(context.tables.path(table)):
            return False
    return all(storage.exists(path) for path in outputs.get("paths", ()))


def run_stage(context: Context, stage: Stage, *, force: bool = False) -> tuple[Manifest, bool]:
    """Run a stage unless its output is there; returns its manifest and whether it ran.

    Raises
    ------
    InputError
        An input is missing or unfinished; the message names the command that makes it.
    TransientError
        Another command is writing the same output.
    """
    key = stage.key(context.config)
    inputs = {
        (name, input_key): context.manifests.require(name, input_key)
        for name, input_key in stage.inputs(context.config, context.manifests)
    }
    expected = stage.fingerprint(context, inputs)
    manifest = context.manifests.find(stage.name, key)
    if not force and is_done(context, manifest, expected):
        assert manifest is not None
        logger.info("%s: already done by run %s at %s", stage.name, manifest.run_id, manifest.finished_at)
        return manifest, False
    with output_lock(context, stage.name, key):
        return _run(stage, key, StageRun(context, MappingProxyType(inputs), expected)), True


def _run(stage: Stage, key: str, stage_run: StageRun) -> Manifest:
    context = stage_run.context
    started = time.monotonic()
    manifest = Manifest(
        stage=stage.name,
        key=key,
        state="running",
        fingerprint=stage_run.fingerprint,
        run_id=context.config.run_id,
        inputs={
            **{f"{name}/{input_key}": found.fingerprint for (name, input_key), found in stage_run.inputs.items()},
            "external": stage.identity(context.config),
        },
        config=stage.settings(context.config),
        config_fingerprint=context.config.fingerprint,
        started_at=now(),
        packages=package_versions(),
    )
    context.manifests.write(manifest)
    context.run.status(stage=stage.name, state="running")
    logger.info("%s: starting", stage.name)
    try:
        with translated(), storage.explained(stage.name):
            outcome = stage.run(stage_run)
    except GateError as error:
        refused = {"refused": str(error), **error.details}
        context.manifests.write(replace(manifest, state="refused", outputs=refused))
        raise
    seconds = round(time.monotonic() - started, 3)
    write_metrics(context, stage.label(context.config), [*outcome.metrics, Metric("seconds", seconds)])
    manifest = replace(manifest, state="complete", outputs=outcome.outputs, finished_at=now(), seconds=seconds)
    context.manifests.write(manifest)
    for line in outcome.lines:
        logger.info("%s: %s", stage.name, line)
    logger.info("%s: done in %.1f s", stage.name, seconds)
    return manifest


def write_metrics(context: Context, stage: str, metrics: Sequence[Metric]) -> None:
    """Replace the rows of this run and stage in the metrics table."""
    import pyarrow as pa

    rows = pa.table(
        {
            "name": pa.array([metric.name for metric in metrics], pa.string()),
            "value": pa.array([metric.value for metric in metrics], pa.float64()),
            "low": pa.array([metric.low for metric in metrics], pa.float64()),
            "high": pa.array([metric.high for metric in metrics], pa.float64()),
            "step": pa.array([metric.step for metric in metrics], pa.int32()),
            "at": pa.array([datetime.now(UTC)] * len(metrics), pa.timestamp("us", tz="UTC")),
        }
    )
    context.tables.replace_rows(schemas.METRICS, rows, {"run_id": context.config.run_id, "stage": stage})


@contextmanager
def output_lock(context: Context, stage: str, key: str) -> Iterator[None]:
    """One writer at a time on an output of a stage; `TransientError` names the holder."""
    directory = storage.join(context.manifests.warehouse, "_locks", f"{stage}.{key}")
    with RunLock(directory, f"{stage} {key!r} of {context.manifests.warehouse}"):
        yield
