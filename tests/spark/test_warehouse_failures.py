"""Warehouses that cannot be written: a clear error, the right exit code, and nothing lost."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from wals_spark import schemas
from wals_spark.config import Config
from wals_spark.errors import InputError, TransientError
from wals_spark.runs import ManifestStore
from wals_spark.stage import Outcome, Stage, StageRun, run_stage

pytestmark = pytest.mark.spark

ROW = {"token_id": [0], "token": ["a"], "count": [1], "document_count": [1], "is_special": [False]}


def vocabulary(rows: int = 1, **values: object) -> pa.Table:
    columns = {name: column * rows for name, column in ROW.items()} | values
    columns["token_id"] = list(range(rows))
    return pa.table(columns)


class TableStage(Stage):
    """Writes `rows` as the vocabulary."""

    name = "vocabulary"
    sections = ("train",)

    def __init__(self, rows: pa.Table) -> None:
        self.rows = rows

    def key(self, config: Config) -> str:
        return config.run_id

    def inputs(self, config: Config, manifests: ManifestStore) -> list[tuple[str, str]]:
        return []

    def run(self, stage_run: StageRun) -> Outcome:
        context = stage_run.context
        context.tables.replace_rows(schemas.VOCABULARY, self.rows, {})
        return Outcome(outputs={"tables": context.table_output(schemas.VOCABULARY, {})})


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB."""
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mount)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


def test_full_disk_is_transient_and_the_old_table_stays(make_context, small_disk):
    warehouse = str(small_disk / "warehouse")
    run_stage(make_context(warehouse=warehouse), TableStage(vocabulary()))
    noise = [os.urandom(512).hex() for _ in range(1000)]
    with pytest.raises(TransientError, match="no space left"):
        run_stage(make_context(warehouse=warehouse, train__k=3), TableStage(vocabulary(1000, token=noise)))
    tables = make_context(warehouse=warehouse).tables
    assert [data_file.rows for data_file in tables.files(schemas.VOCABULARY)] == [1]


def test_read_only_warehouse_is_refused_with_the_reason(make_context, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(InputError, match="able to read and write"):
        run_stage(make_context(warehouse=str(small_disk / "warehouse")), TableStage(vocabulary()))


def test_warehouse_below_a_file_is_refused(make_context, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="able to read and write"):
        run_stage(make_context(warehouse=str(tmp_path / "file" / "warehouse")), TableStage(vocabulary()))


def test_file_of_a_table_that_was_lost_is_named(make_context):
    run_stage(make_context(), TableStage(vocabulary()))
    tables = make_context().tables
    lost = tables.files(schemas.VOCABULARY)[0].path
    os.unlink(lost)
    with pytest.raises(InputError, match=os.path.basename(lost)):
        tables.files(schemas.VOCABULARY)
