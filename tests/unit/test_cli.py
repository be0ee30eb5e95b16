from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from wals_spark.cli import main
from wals_spark.pipeline import STAGES


def test_show_prints_a_configuration_that_parses(capsys):
    assert main(["config", "--show", "--set", "train.k=7", "--run-id", "r1"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["train"]["k"], shown["run_id"]) == (7, "r1")


def test_reference_lists_every_section(capsys):
    assert main(["config", "--reference"]) == 0
    out = capsys.readouterr().out
    assert all(f"| **{name}** |" in out for name in ("corpus", "train", "inject"))


def test_configuration_reference_in_docs_is_what_the_code_says(capsys):
    assert main(["config", "--reference"]) == 0
    text = (Path(__file__).resolve().parents[2] / "docs" / "configuration.md").read_text()
    assert text.endswith(capsys.readouterr().out), "run `make docs`"


@pytest.mark.parametrize(
    "arguments",
    [
        ["pipeline", "--config", "no-such-file.yaml"],
        ["pipeline", "--set", "train.kk=3"],
        ["no-such-command"],
        ["corpus", "--no-such-flag"],
    ],
    ids=["missing-config", "unknown-key", "unknown-command", "unknown-flag"],
)
def test_bad_usage_exits_with_2(arguments):
    assert main(arguments) == 2


@pytest.mark.parametrize("name", ["../up", "a/b", "a\\b", "a=b", "", ".hidden", "all"])
@pytest.mark.parametrize("table_format", ["parquet", "delta"])
@pytest.mark.parametrize("command", [["corpus", "--batch-id"], ["drop-batch", "--batch-id"], ["compact", "--into"]])
def test_a_batch_id_that_is_no_plain_name_is_refused_before_anything_is_written(
    tmp_path, caplog, monkeypatch, command, table_format, name
):
    monkeypatch.setattr(logging.getLogger("wals_spark"), "propagate", True)
    settings = ["--warehouse", str(tmp_path / "warehouse"), "--set", f"table_format={table_format}"]
    assert main([*command, name, *settings]) == 2
    assert repr(name) in caplog.text
    assert not (tmp_path / "warehouse" / "cooccurrence").exists()


def test_help_needs_neither_spark_nor_torch():
    code = (
        "import sys\n"
        "from wals_spark.cli import main\n"
        "main(['--help'])\n"
        "assert not {'pyspark', 'torch', 'transformers'} & set(sys.modules), 'heavy imports'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in STAGES)
