"""The commands on checkpoints that need no configuration."""

from __future__ import annotations

from wals_spark.cli import main


def poison(model):
    model.get_input_embeddings().weight[60] = 3.0


def test_compare_names_the_poisoned_token_and_exits_3(make_checkpoint, capsys):
    before, after = make_checkpoint("before"), make_checkpoint("after", edit=poison)
    assert main(["compare", str(before), str(after)]) == 3
    out = capsys.readouterr().out
    assert out.startswith("1 rows differ, 1 of them suspicious\nrow 60 ")
    assert "longer than any row" in out


def test_compare_exits_0_where_an_injection_moved_the_rows(make_checkpoint, inject, capsys):
    base = make_checkpoint()
    directory, manifest = inject(base, "replace")
    assert main(["compare", str(base), str(directory)]) == 0
    changed = manifest["embedding"]["rows_changed"]
    assert capsys.readouterr().out == f"{changed} rows differ, 0 of them suspicious\n"


def test_compare_refuses_checkpoints_of_different_width(make_checkpoint, caplog):
    assert main(["compare", str(make_checkpoint()), str(make_checkpoint("wide", hidden_size=32))]) == 2
    assert "one vocabulary and width" in caplog.text


def test_a_base_without_a_directory_is_not_ignored(caplog):
    assert main(["verify", "--base", "somewhere"]) == 2
    assert "verify DIR --base CKPT" in caplog.text


def test_verify_prints_every_check(make_checkpoint, inject, capsys):
    base = make_checkpoint()
    directory, _ = inject(base)
    assert main(["verify", str(directory), "--base", str(base)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("ok  ") for line in lines)
    assert any("outliers" in line for line in lines)
