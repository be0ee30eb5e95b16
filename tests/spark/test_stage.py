from __future__ import annotations

import pyarrow as pa
import pytest

from wals_spark import schemas
from wals_spark.config import Config
from wals_spark.errors import InputError, TransientError
from wals_spark.runs import ManifestStore, RunLock
from wals_spark.stage import Metric, Outcome, Stage, StageRun, run_stage

pytestmark = pytest.mark.spark


class ToyStage(Stage):
    """Writes one row; `calls` gets its name each time it runs."""

    sections = ("train",)

    def __init__(self, calls: list[str], name: str = "train", after: tuple[str, ...] = ()) -> None:
        self.calls, self.after = calls, after
        self.name = name

    def key(self, config: Config) -> str:
        return config.run_id

    def inputs(self, config: Config, manifests: ManifestStore) -> list[tuple[str, str]]:
        return [(other, config.run_id) for other in self.after]

    def run(self, stage_run: StageRun) -> Outcome:
        self.calls.append(self.name)
        context = stage_run.context
        row = {"token_id": [0], "token": ["a"], "count": [1], "document_count": [1], "is_special": [False]}
        context.tables.replace_rows(schemas.VOCABULARY, pa.table(row), {})
        return Outcome(
            outputs={"tables": context.table_output(schemas.VOCABULARY, {})}, metrics=[Metric("loss", 2.5, step=1)]
        )


class ExportOfToys(ToyStage):
    sections = ("export",)


class FailingStage(ToyStage):
    def run(self, stage_run: StageRun) -> Outcome:
        raise ZeroDivisionError


def test_second_run_does_nothing(make_context):
    calls: list[str] = []
    stage = ToyStage(calls)
    assert run_stage(make_context(), stage)[1] is True
    assert run_stage(make_context(), stage)[1] is False
    assert calls == ["train"]


def test_changed_key_of_its_section_runs_it_again_and_others_do_not(make_context):
    calls: list[str] = []
    stage = ToyStage(calls)
    run_stage(make_context(), stage)
    assert run_stage(make_context(export__combine="v", train__workers=2), stage)[1] is False
    assert run_stage(make_context(train__k=3), stage)[1] is True


def test_changed_stage_runs_those_after_it(make_context):
    calls: list[str] = []
    first, second = ToyStage(calls, "train"), ExportOfToys(calls, "export", ("train",))
    for context in (make_context(), make_context(train__k=3)):
        run_stage(context, first)
        run_stage(context, second)
    assert calls == ["train", "export", "train", "export"]


def test_interrupted_stage_is_not_trusted(make_context):
    calls: list[str] = []
    with pytest.raises(ZeroDivisionError):
        run_stage(make_context(), FailingStage(calls))
    with pytest.raises(InputError, match="not finished"):
        run_stage(make_context(), ToyStage(calls, "export", ("train",)))
    assert run_stage(make_context(), ToyStage(calls))[1] is True


def test_output_that_was_removed_is_made_again(make_context):
    calls: list[str] = []
    stage = ToyStage(calls)
    context = make_context()
    run_stage(context, stage)
    context.tables.drop(schemas.VOCABULARY, {})
    assert run_stage(make_context(), stage)[1] is True


def test_metrics_of_a_stage_are_replaced_not_added(make_context):
    stage = ToyStage([])
    run_stage(make_context(), stage)
    run_stage(make_context(), stage, force=True)
    rows = make_context().tables.read(schemas.METRICS, {"run_id": "default", "stage": "train"}).collect()
    assert sorted(row["name"] for row in rows) == ["loss", "seconds"]
    assert next(row for row in rows if row["name"] == "loss")["value"] == 2.5


def test_output_being_written_by_another_command_is_refused(make_context):
    context = make_context()
    with (
        RunLock(f"{context.config.warehouse}/_locks/train.default", "train 'default'"),
        pytest.raises(TransientError, match="being worked on"),
    ):
        run_stage(context, ToyStage([]))


def test_inputs_and_fingerprint_belong_to_one_run(make_context):
    seen: list[StageRun] = []

    class Recorder(ToyStage):
        def run(self, stage_run: StageRun) -> Outcome:
            seen.append(stage_run)
            return super().run(stage_run)

    context = make_context()
    first, _ = run_stage(context, Recorder([]))
    second, _ = run_stage(context, Recorder([], "export", ("train",)))
    assert [stage_run.fingerprint for stage_run in seen] == [first.fingerprint, second.fingerprint]
    assert not seen[0].inputs
    assert seen[1].input("train").fingerprint == first.fingerprint
    assert [manifest.key for manifest in seen[1].inputs_of("train")] == ["default"]
