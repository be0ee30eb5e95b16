from __future__ import annotations

import hashlib
import json
import os

import pytest

from wals_spark.checkpoints.output_check import OutputOption, check_output
from wals_spark.errors import ConfigError, InputError

OPTION = OutputOption("--output", "--overwrite", "--checkpoint")


def result(directory, name="injection.json", kind="wals_spark injection"):
    """An earlier result."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    listed = {"config.json": hashlib.sha256(b"{}").hexdigest()}
    (directory / name).write_text(json.dumps({"format": kind, "files": listed}))
    return directory


def refused(output, error, message, **options):
    before = sorted(str(path) for path in output.parent.rglob("*")) if isinstance(output, os.PathLike) else None
    with pytest.raises(error, match=message) as caught:
        check_output(str(output), replace=True, option=OPTION, **options)
    assert caught.value.exit_code == 2
    assert str(caught.value).startswith("--output: ")
    if before is not None:
        assert sorted(str(path) for path in output.parent.rglob("*")) == before


def test_what_does_not_exist_may_be_written(tmp_path):
    check_output(str(tmp_path / "a" / "out"), replace=False, inputs=[str(tmp_path)], option=OPTION)


@pytest.mark.parametrize("name", ["injection.json", "compression.json"])
def test_an_earlier_result_may_be_replaced(tmp_path, name):
    check_output(str(result(tmp_path / "out", name)), replace=True, option=OPTION)


def test_an_empty_directory_may_be_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    check_output(f"{tmp_path}/out///", replace=True, option=OPTION)


def test_what_exists_stays_without_leave(tmp_path):
    with pytest.raises(InputError, match=r"--output: .*out exists; choose another, or replace it with --overwrite"):
        check_output(str(result(tmp_path / "out")), replace=False, option=OPTION)
    with pytest.raises(InputError, match="exists; choose another or remove it"):
        check_output(str(tmp_path / "out"), replace=False, option=OutputOption("--output", None, "--checkpoint"))


@pytest.mark.parametrize("spelled", [".", "./", "..", "../", "../..", "sub/..", "/", "", "../work"])
def test_the_working_directory_and_what_holds_it_stay(tmp_path, monkeypatch, spelled):
    (tmp_path / "work" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    refused(spelled, ConfigError, "is the working directory or holds it")


def test_an_earlier_result_as_the_working_directory_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(result(tmp_path / "out"))
    refused(tmp_path / "out", ConfigError, "is the working directory or holds it")


@pytest.mark.parametrize("spelled", ["out", "out/", "work/../out", "./out//"])
def test_the_checkpoint_itself_stays(tmp_path, monkeypatch, spelled):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path)
    result(tmp_path / "out")
    refused(spelled, ConfigError, r"is the checkpoint itself \(--checkpoint\)", inputs=[str(tmp_path / "out")])


def test_what_holds_the_checkpoint_stays(tmp_path):
    result(tmp_path / "models")
    base = result(tmp_path / "models" / "deep" / "base")
    refused(tmp_path / "models", ConfigError, "holds .*base of the checkpoint", inputs=[str(base)])
    refused(tmp_path / "models" / "deep", ConfigError, "holds .*base of the checkpoint", inputs=[str(base)])


def test_the_checkpoint_is_found_through_links(tmp_path):
    base = result(tmp_path / "models")
    (tmp_path / "alias").symlink_to(base)
    refused(base, ConfigError, "the checkpoint itself", inputs=[str(tmp_path / "alias")])
    (tmp_path / "data").symlink_to(tmp_path)
    refused(tmp_path / "data" / "models", ConfigError, "the checkpoint itself", inputs=[str(base)])


def test_files_that_the_checkpoint_links_to_stay(tmp_path):
    stored = result(tmp_path / "stored")
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").symlink_to(stored / "config.json")
    refused(stored, ConfigError, "holds .*base/config.json of the checkpoint", inputs=[str(tmp_path / "base")])


def test_a_hub_name_is_no_directory(tmp_path):
    check_output(str(result(tmp_path / "out")), replace=True, inputs=["org/name"], option=OPTION)


@pytest.mark.parametrize("ending", ["", "/"])
def test_a_symbolic_link_stays(tmp_path, ending):
    result(tmp_path / "elsewhere" / "real")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "out").symlink_to(tmp_path / "elsewhere" / "real")
    refused(f"{tmp_path}/here/out{ending}", InputError, "is a symbolic link to .*elsewhere/real")


def test_a_link_to_nothing_stays(tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "nothing")
    refused(tmp_path / "out", InputError, "is a symbolic link to")
    with pytest.raises(InputError, match="is a symbolic link"):
        check_output(str(tmp_path / "out"), replace=False, option=OPTION)


def test_a_file_stays(tmp_path):
    (tmp_path / "out").write_text("mine")
    refused(tmp_path / "out", InputError, "is a file")


@pytest.mark.parametrize(
    "text",
    [
        None,
        "{",
        "[]",
        "{}",
        "\xff",
        '{"format": "of somebody", "files": {}}',
        '{"format": 3, "files": {}}',
        '{"format": "wals_spark injection"}',
        '{"format": "wals_spark injection", "files": ["notes.txt"]}',
        "[" * 100_000,
    ],
)
def test_what_is_not_an_earlier_result_stays(tmp_path, text):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    if text is not None:
        (tmp_path / "out" / "injection.json").write_text(text, encoding="latin-1")
    refused(tmp_path / "out", InputError, "is not an earlier result .*notes.txt")


def test_a_manifest_that_is_a_link_or_a_directory_is_none(tmp_path):
    other = result(tmp_path / "other")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "injection.json").symlink_to(other / "injection.json")
    refused(tmp_path / "out", InputError, "is not an earlier result")
    (tmp_path / "dir" / "injection.json").mkdir(parents=True)
    refused(tmp_path / "dir", InputError, "is not an earlier result")


@pytest.mark.parametrize("foreign", ["notes.txt", "checkpoint-500/", ".cache/", "link"])
def test_files_of_others_in_an_earlier_result_stay(tmp_path, foreign):
    out = result(tmp_path / "out")
    if foreign.endswith("/"):
        (out / foreign).mkdir()
    elif foreign == "link":
        (out / foreign).symlink_to(out / "config.json")
    else:
        (out / foreign).write_text("mine")
    refused(out, InputError, f"{foreign.rstrip('/')} not written by wals_spark")


def test_files_that_changed_since_stay(tmp_path):
    out = result(tmp_path / "out")
    (out / "config.json").write_text('{"trained": "on"}')
    refused(out, InputError, "config.json changed since")


def test_many_names_are_cut_short(tmp_path):
    out = result(tmp_path / "out")
    for number in range(20):
        (out / f"n{number:02}").write_text("")
    refused(out, InputError, "n07 and 12 more not written")
