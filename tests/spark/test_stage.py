from __future__ import annotations

import pyarrow as pa
import pytest

from wals_spark import schemas
from wals_spark.errors import InputError, TransientError
from wals_spark.runs import RunLock
from wals_spark.stage import Context, Metric, Outcome, Stage, run_stage

pytestmark = pytest.mark.spark


def make_stage(calls: list[str], name: str = "train", after: tuple[str, ...] = (), **replace: object) -> Stage:
    def run(context: Context) -> Outcome:
        calls.append(name)
        row = {"token_id": [0], "token": ["a"], "count": [1], "document_count": [1], "is_special": [False]}
        context.tables.replace_rows(schemas.VOCABULARY, pa.table(row), {})
        return Outcome(
            outputs={"tables": context.table_output(schemas.VOCABULARY, {})}, metrics=[Metric("loss", 2.5, step=1)]
        )

    values = {
        "name": name,
        "sections": ("train",),
        "key": lambda config: config.run_id,
        "inputs": lambda config, manifests: [(other, config.run_id) for other in after],
        "run": run,
        **replace,
    }
    return Stage(**values)


def test_second_run_does_nothing(make_context):
    calls: list[str] = []
    stage = make_stage(calls)
    assert run_stage(make_context(), stage)[1] is True
    assert run_stage(make_context(), stage)[1] is False
    assert calls == ["train"]


def test_changed_key_of_its_section_runs_it_again_and_others_do_not(make_context):
    calls: list[str] = []
    stage = make_stage(calls)
    run_stage(make_context(), stage)
    assert run_stage(make_context(export__combine="v", train__workers=2), stage)[1] is False
    assert run_stage(make_context(train__k=3), stage)[1] is True


def test_changed_stage_runs_those_after_it(make_context):
    calls: list[str] = []
    first, second = make_stage(calls, "train"), make_stage(calls, "export", ("train",), sections=("export",))
    for context in (make_context(), make_context(train__k=3)):
        run_stage(context, first)
        run_stage(context, second)
    assert calls == ["train", "export", "train", "export"]


def test_interrupted_stage_is_not_trusted(make_context):
    calls: list[str] = []

    def fail(context: Context) -> Outcome:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_stage(make_context(), make_stage(calls, run=fail))
    with pytest.raises(InputError, match="not finished"):
        run_stage(make_context(), make_stage(calls, "export", ("train",)))
    assert run_stage(make_context(), make_stage(calls))[1] is True


def test_output_that_was_removed_is_made_again(make_context):
    calls: list[str] = []
    stage = make_stage(calls)
    context = make_context()
    run_stage(context, stage)
    context.tables.drop(schemas.VOCABULARY, {})
    assert run_stage(make_context(), stage)[1] is True


def test_metrics_of_a_stage_are_replaced_not_added(make_context):
    stage = make_stage([])
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
        run_stage(context, make_stage([]))
