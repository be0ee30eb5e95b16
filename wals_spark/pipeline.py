"""The stages in their order, and running them all."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Sequence

from wals_spark.config import Config
from wals_spark.errors import WalsSparkError
from wals_spark.runs import now
from wals_spark.stage import Context, Stage, run_stage

logger = logging.getLogger(__name__)

STAGES: dict[str, tuple[str, str]] = {
    "corpus": ("wals_spark.corpus.stages", "CorpusStage"),
    "vocabulary": ("wals_spark.corpus.stages", "VocabularyStage"),
    "cooccurrence": ("wals_spark.cooccurrence.stages", "CooccurrenceStage"),
    "train": ("wals_spark.wals.stages", "TrainStage"),
    "export": ("wals_spark.factors.stages", "ExportStage"),
    "neighbours": ("wals_spark.factors.stages", "NeighboursStage"),
    "states": ("wals_spark.inject.fit.stages", "StatesStage"),
    "inject": ("wals_spark.inject.stages", "InjectStage"),
    "verify": ("wals_spark.inject.stages", "VerifyStage"),
    "evaluate": ("wals_spark.evaluate.stages", "EvaluateStage"),
}
"""Name -> module and class of the stage, in the order in which the pipeline runs them."""


def load_stage(name: str) -> Stage:
    """The stage of a name; imports its package only now, so that ``--help`` stays quick."""
    module, class_name = STAGES[name]
    stage = getattr(importlib.import_module(module), class_name)()
    assert isinstance(stage, Stage)
    return stage


def run_stages(config: Config, names: Sequence[str] | None = None, *, force: bool = False) -> list[str]:
    """Run stages in order, each only if it is not done; returns the names of those that ran.

    All checks run before the first stage does, so that a bad evaluation file is not found after an
    hour of training.

    Raises
    ------
    WalsSparkError
        What went wrong, with its exit code; ``runs/<run_id>/status.json`` says the same.
    """
    stages = [stage for stage in map(load_stage, names or STAGES) if names or stage.enabled(config)]
    for stage in stages:
        stage.check(config)
    context = Context(config)
    ran: list[str] = []
    started = time.monotonic()
    current = ""
    with context.run.locked():
        try:
            for stage in stages:
                current = stage.name
                if run_stage(context, stage, force=force)[1]:
                    ran.append(stage.name)
        except BaseException as error:
            code = error.exit_code if isinstance(error, WalsSparkError) else 1
            context.run.status(state="failed", stage=current, exit_code=code, error=f"{type(error).__name__}: {error}")
            raise
        finally:
            context.stop()
        context.run.status(state="complete", stages=[stage.name for stage in stages], ran=ran, finished_at=now())
    if ran:
        logger.info("run %s: %s done in %.1f s", config.run_id, ", ".join(ran), time.monotonic() - started)
    else:
        logger.info("run %s: nothing to do, every stage is already done", config.run_id)
    return ran
