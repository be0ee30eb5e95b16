"""The comparison of fitted rows with trainings, from token ids to a table, on a tiny model."""

from __future__ import annotations

import json

import injection
import injection_arms
import pytest

ARMS = "base,bias,fit-1,fit-2,embeddings-1,full-0.5,full-1,general-1"


@pytest.fixture
def run(tmp_path, checkpoint, texts, monkeypatch):
    """`run(arms, ...)` computes arms; returns all lines so far."""
    monkeypatch.setattr(injection_arms, "ADAPTED", 16)
    output = tmp_path / "results.jsonl"

    def run_arms(arms, *more, code=0):
        options = ["--checkpoint", str(checkpoint), "--data", str(texts), "--output", str(output)]
        sizes = ["--domains", "one,two", "--sequences", "24", "--test-sequences", "8", "--threads", "1"]
        assert injection.main(["run", *options, *sizes, "--arms", arms, *more]) == code
        return [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []

    run_arms.output = output
    return run_arms


def test_every_arm_gives_a_line_for_each_domain(run):
    lines = run(ARMS)
    assert [(line["arm"], line["domain"]) for line in lines] == [
        (arm, domain) for arm in ARMS.split(",") for domain in ("one", "two")
    ]


def test_forward_equivalents_are_maskings_and_three_for_an_epoch(run):
    found = {line["arm"]: line["forward_equivalents"] for line in run(ARMS, "--domains", "one")}
    assert found == {
        "base": 0, "bias": 1, "fit-1": 1, "fit-2": 2, "embeddings-1": 3, "full-0.5": 1.5, "full-1": 3, "general-1": 3,
    }  # fmt: skip


def test_an_arm_does_not_depend_on_the_arms_before_it(run):
    after_others = {line["arm"]: line for line in run("fit-2,full-1,embeddings-1,fit-1", "--domains", "one")}
    run.output.unlink()
    for arm in ("embeddings-1", "fit-1"):
        (alone,) = run(arm, "--domains", "one")
        run.output.unlink()
        assert alone["gain"] == after_others[arm]["gain"]
        assert alone["general"] == after_others[arm]["general"]


def test_lines_that_are_there_are_not_computed_again(run, monkeypatch):
    first = run("base,full-1")

    def refuse(*arguments, **options):
        raise AssertionError("trained again")

    monkeypatch.setattr(injection_arms, "train", refuse)
    assert run("base,full-1") == first


def test_a_line_that_was_cut_off_is_computed_again(run):
    run("base")
    text = run.output.read_text()
    run.output.write_text(text[:-20])
    injection_lines = list(injection.read_lines(run.output))
    assert [line["domain"] for line in injection_lines] == ["one"]
    run.output.write_text(text[:-20])
    assert injection.main(["table", str(run.output)]) == 0


def test_a_domain_gains_from_its_own_text(run):
    found = {line["arm"]: line for line in run("base,bias,fit-2", "--domains", "one")}
    assert found["base"]["gain"]["value"] == 0
    assert found["bias"]["gain"]["low"] > 0
    assert found["fit-2"]["untied"]["gain"]["value"] > 0


def test_the_adapted_base_is_kept_and_its_losses_are_its_own(run):
    plain = run("base", "--domains", "two")[0]
    adapted = run("base", "--domains", "two", "--adapted")[1]
    assert adapted["adapted"]
    assert adapted["general_loss"] < plain["general_loss"]
    held = run.output.with_suffix(".adapted.safetensors")
    before = held.stat().st_mtime_ns
    run("full-1", "--domains", "two", "--adapted")
    assert held.stat().st_mtime_ns == before


def test_weights_of_another_base_are_refused(run, capsys):
    run("base", "--domains", "two", "--adapted")
    assert run("full-1", "--domains", "two", "--adapted", "--training-precision", "bf16", code=1)
    assert "remove it" in capsys.readouterr().err


def test_too_few_sequences_are_refused(run, capsys):
    assert run("full-1", "--sequences", "5000", code=1) == []
    assert "5000 are asked for" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["fit", "fit-0", "fit-1.5", "half-1", "full--1"])
def test_an_unknown_arm_is_refused(name, run, capsys):
    assert run(name, code=1) == []
    assert "fit-M" in capsys.readouterr().err


def test_a_text_that_was_not_prepared_is_refused(run, capsys):
    assert run("base", "--domains", "three", code=1) == []
    assert "prepare" in capsys.readouterr().err
