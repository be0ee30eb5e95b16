"""The train stage: co-occurrence counts in, factors out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from wals_spark import schemas, storage
from wals_spark.config import Config
from wals_spark.errors import ConfigError
from wals_spark.matrix.coo import list_row_groups
from wals_spark.objective import from_config
from wals_spark.runs import ManifestStore
from wals_spark.stage import Context, Metric, Outcome, Stage, StageRun
from wals_spark.stage_outputs import TrainOutputs
from wals_spark.tables.base import spark_read_path
from wals_spark.tables.count_facts import CountFacts, agreed_facts, facts_of_cells
from wals_spark.tables.vocabulary import read_vocabulary

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from wals_spark.cluster.preflight import BarrierPlan
    from wals_spark.wals.engine.task import RankTask

logger = logging.getLogger(__name__)


class TrainStage(Stage):
    """Co-occurrence counts in, factors out."""

    name = "train"
    sections = ("train",)

    def key(self, config: Config) -> str:
        """The run id."""
        return config.run_id

    def inputs(self, config: Config, manifests: ManifestStore) -> Sequence[tuple[str, str]]:
        """The counts of every batch to train on; for given cells the vocabulary of their ids."""
        if config.train.cells:
            return [("vocabulary", config.corpus.batch_id)]
        batches = config.train.batches
        if batches == ("all",):
            batches = tuple(manifests.keys("cooccurrence")) or (config.corpus.batch_id,)
        return [("cooccurrence", batch) for batch in batches]

    def check(self, config: Config) -> None:
        """Raise where the keys of ``train`` contradict each other, or a file of given cells is missing."""
        objective = from_config(config.train)
        if not objective.is_quadratic and (config.train.exchange == "sharded" or config.train.matrix == "streamed"):
            raise ConfigError(
                f"train.objective {objective.name} needs all factors and all cells in memory; remove train.exchange "
                "and train.matrix"
            )
        if (objective.weight == "column") != bool(config.train.cells):
            raise ConfigError(
                "train.objective custom needs train.cells, Parquet files of (row_id, col_id, target, weight)"
                if not config.train.cells
                else f"train.cells is set, but the objective {objective.name} is made from counts; use the "
                "objective custom"
            )
        cells_identity(config)

    def identity(self, config: Config) -> Any:
        """Paths, sizes and times of the files of given cells."""
        return cells_identity(config)

    def run(self, stage_run: StageRun) -> Outcome:
        """Factorise the counts and write the factors."""
        from wals_spark.cluster.preflight import preflight
        from wals_spark.wals.engine.driver import train
        from wals_spark.wals.engine.task import check_shape

        context = stage_run.context
        config = context.config.train
        vocabulary = read_vocabulary(context.tables)
        counts = facts_of_cells(vocabulary)
        if not config.cells:
            counts = agreed_facts(stage_run.inputs_of("cooccurrence"), vocabulary)
        size = counts.vocabulary_size
        check_shape(config.k, (size, size))
        batches = [manifest.key for manifest in stage_run.inputs_of("cooccurrence")]
        matrix, cells = _matrix(context, batches, counts)
        barrier_plan = preflight(context.spark, workers=config.workers, device=config.device)
        task = _fit_memory(_rank_task(stage_run, matrix, size, barrier_plan.device), cells, barrier_plan)
        logger.info(
            "train: %s, %d x %d, about %s cells of %d batches, k=%d, %d ranks on %s",
            config.objective, size, size, f"{cells:,}", len(batches), config.k, barrier_plan.ranks, barrier_plan.device,
        )  # fmt: skip
        result = train(context.spark, task, barrier_plan)
        where = {"run_id": context.config.run_id}
        context.tables.replace(schemas.FACTORS, factors_frame(context, result, size), where)
        storage.remove(task.result)
        outputs: TrainOutputs = {
            "k": config.k,
            "objective": task.objective.to_dict(),
            "batches": batches,
            "vocabulary_hash": counts.vocabulary_hash,
            "vocabulary_size": size,
            "sweeps": result["half_sweeps"] / 2,
            "converged": result["converged"],
            "loss": result["losses"][-1],
            "nnz": result["nnz"],
            "empty_rows": result["empty_rows"],
            "empty_cols": result["empty_cols"],
            "singular_values": result["singular_values"],
            "ranks": result["ranks"],
            "seconds": result["seconds"],
            "exchange": result["exchange"],
            "matrix": result["matrix"],
            "tables": context.table_output(schemas.FACTORS, where),
        }
        return Outcome(outputs, _metrics(result), _lines(result, config.k))


def cells_identity(config: Config) -> Any:
    """Paths, sizes and times of the files of given cells."""
    found = []
    for path in config.train.cells:
        fs, local = storage.filesystem(path)
        info = fs.get_file_info(local)
        if not info.is_file:
            raise ConfigError(f"train.cells: there is no file at {path}; expected Parquet files")
        found.append([path, info.size, info.mtime_ns])
    return found


def _matrix(context: Context, batches: Sequence[str], counts: CountFacts) -> tuple[dict[str, Any], int]:
    """Fields of the ranks' task that say where the cells are and what they mean; the number of cells."""
    given = context.config.train.cells
    if given:
        rows = sum(row_group.rows for row_group in list_row_groups(given))
        columns = {"files": given, "symmetric": False, "unit": 1, "value": "target", "weight": "weight"}
        return {**columns, "signed": True, "duplicates": "refuse"}, rows
    files = [file for batch in batches for file in context.tables.files(schemas.COOCCURRENCE, {"batch_id": batch})]
    paths = tuple(file.path for file in files)
    return {"files": paths, "symmetric": counts.symmetric, "unit": counts.unit}, sum(file.rows for file in files)


def _rank_task(stage_run: StageRun, matrix: dict[str, Any], size: int, device: str) -> RankTask:
    from wals_spark.wals.engine.task import RankTask

    config = stage_run.context.config.train
    return RankTask(
        **matrix,
        shape=(size, size),
        objective=from_config(config),
        config=config,
        seed=stage_run.context.config.seed,
        directory=_directory(stage_run),
        facts={"fingerprint": stage_run.fingerprint},
        device=device,
    )


def _fit_memory(task: RankTask, cells: int, barrier_plan: BarrierPlan) -> RankTask:
    """The task with its memory plan, where this machine's memory is that of the ranks.

    With GPUs, or on other machines, the ranks decide by the memory that they find.
    """
    from wals_spark.wals.engine.memory_estimate import plan_memory
    from wals_spark.wals.engine.system_memory import machine_memory

    if not barrier_plan.local or barrier_plan.device != "cpu":
        return task
    memory = machine_memory() // barrier_plan.ranks
    plan, estimate = plan_memory(task.problem_size(cells, barrier_plan.ranks), task.config, memory)
    logger.info("train: factors %s, matrix %s; a rank needs about: %s", plan.factors, plan.matrix, estimate)
    return replace(task, memory_plan=plan)


def _metrics(result: dict[str, Any]) -> list[Metric]:
    figures = ("peak_memory_bytes", "nnz", "empty_rows", "empty_cols")
    return [
        *(Metric("loss", loss, step=step) for step, loss in enumerate(result["losses"], 1)),
        *(Metric(f"seconds_{name}", seconds) for name, seconds in result["seconds"].items()),
        *(Metric(name, result[name]) for name in figures),
    ]


def _lines(result: dict[str, Any], k: int) -> list[str]:
    losses = result["losses"]
    lines = [
        f"{result['nnz']:,} cells, k={k}, {result['half_sweeps'] / 2:g} sweeps"
        f"{' (converged)' if result['converged'] else ''}, loss {losses[0]:.6g} -> {losses[-1]:.6g}"
    ]
    if result["empty_rows"] or result["empty_cols"]:
        lines.append(
            f"{result['empty_rows']:,} tokens have no co-occurrence and get zero vectors (as columns "
            f"{result['empty_cols']:,})"
        )
    return lines


def _directory(stage_run: StageRun) -> str:
    """Where this training keeps its checkpoints; those of trainings with another fingerprint are removed."""
    root = stage_run.context.run.path("train")
    for info in storage.list_files(root):
        name = info.path.rstrip("/").rpartition("/")[2]
        if name != stage_run.fingerprint:
            logger.info("train: removing the checkpoints of another configuration, %s", info.path)
            storage.remove(storage.join(root, name))
    return storage.join(root, stage_run.fingerprint)


def factors_frame(context: Context, result: dict[str, Any], size: int) -> DataFrame:
    """The rows of the factors table: vectors that the ranks wrote, with tokens and counts of the vocabulary."""
    from pyspark.sql import functions as F

    vocabulary = context.tables.read(schemas.VOCABULARY).where(F.col("token_id") < size)
    vocabulary = vocabulary.select("token_id", "token", "count")
    sides = []
    for side in ("row", "col"):
        paths = [entry["path"] for entry in result["files"] if entry["side"] == side]
        vectors = context.spark.read.schema("token_id int, vector array<float>, bias float").parquet(
            *map(spark_read_path, paths)
        )
        sides.append(vectors.withColumn("side", F.lit(side)))
    frame = sides[0].unionByName(sides[1]).join(vocabulary, "token_id")
    return frame.select("token_id", "token", "count", "vector", "bias", "side").repartition(1, "side")
