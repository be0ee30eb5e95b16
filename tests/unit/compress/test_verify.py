from __future__ import annotations

import json

import pytest

from wals_spark.checkpoints import verify as injection
from wals_spark.checkpoints.artifact import manifest_sha256
from wals_spark.checkpoints.raw_tensor import RawTensor, file_sha256
from wals_spark.checkpoints.safetensors_file import read_raw_tensors, write_raw_tensors
from wals_spark.checkpoints.verify import read_manifest
from wals_spark.cli import main
from wals_spark.compress.compress_checkpoint import CompressionRequest, compress_checkpoint
from wals_spark.compress.verify import verify_any_format
from wals_spark.errors import InputError

STEM = "roberta.embeddings.word_embeddings."
FILES = {
    "dense": "model.safetensors",
    "factorised": "model.safetensors",
    "plugin": "model.factorised.safetensors",
}


@pytest.fixture
def make(make_checkpoint, tmp_path):
    """Compress a fresh checkpoint in a format; returns the base and the folder."""

    def run(format_, **options):
        base = make_checkpoint()
        compress_checkpoint(CompressionRequest(str(base), str(tmp_path / "out"), rank=4, format=format_, **options))
        return str(base), tmp_path / "out"

    return run


def failed(report):
    return {check.name for check in report.checks if not check.passed}


def forge(directory, file, edit):
    """Change a file and sign injection.json again, as a careful forger would."""
    edit()
    manifest = read_manifest(directory)
    manifest["files"][file] = file_sha256(directory / file)
    manifest["sha256"] = manifest_sha256(manifest)
    (directory / "injection.json").write_text(json.dumps(manifest))


def flip(path, name):
    """Change the first number of a tensor."""
    tensors, metadata = read_raw_tensors(path)
    tensors = {key: RawTensor(value.dtype, value.shape, value.data.copy()) for key, value in tensors.items()}
    tensors[name].data[1] ^= 1
    write_raw_tensors(path, tensors, metadata)


@pytest.mark.parametrize("format_", FILES)
def test_every_format_verifies_with_and_without_its_base(make, format_):
    base, directory = make(format_)
    report = verify_any_format(directory, base)
    assert report.failures == []
    names = {check.name for check in report.checks}
    assert {"identical", "base rows", "declared"} <= names
    assert ({"code"} <= names) == (format_ == "factorised")
    assert ({"reload AutoModelForMaskedLM", "reload AutoModelForQuestionAnswering"} <= names) == (
        format_ != "factorised"
    )
    assert verify_any_format(directory, reload=False).failures == []


@pytest.mark.parametrize("format_", FILES)
def test_another_activation_or_tokenizer_is_caught_by_the_base(make, format_):
    base, directory = make(format_)
    for name, key in (("config.json", "hidden_act"), ("tokenizer.json", "normalizer")):
        path = directory / name
        content = json.loads(path.read_text())
        forge(
            directory,
            name,
            lambda path=path, content=content, key=key: path.write_text(
                json.dumps({**content, key: "relu" if key == "hidden_act" else {"type": "Lowercase"}})
            ),
        )
    assert failed(verify_any_format(directory, reload=False)) == set()
    report = verify_any_format(directory, base, reload=False)
    assert report.failures == ["files of the base: config.json: hidden_act differ, tokenizer.json: normalizer differ"]


@pytest.mark.parametrize("format_", ["factorised", "plugin"])
@pytest.mark.parametrize("part", ["coordinates", "basis", "mean"])
def test_a_changed_factor_is_caught_even_when_hashes_are_forged(make, format_, part):
    base, directory = make(format_)
    file = FILES[format_]
    forge(directory, file, lambda: flip(directory / file, STEM + part))
    assert {"factors", "tensors"} <= failed(verify_any_format(directory, base, reload=False))


def test_a_dense_matrix_that_is_not_its_factors_is_caught(make):
    base, directory = make("dense")
    forge(directory, "model.safetensors", lambda: flip(directory / "model.safetensors", STEM + "weight"))
    assert {"expansion", "tensors"} <= failed(verify_any_format(directory, base, reload=False))


def test_an_undeclared_tensor_is_caught(make):
    base, directory = make("plugin")
    file = FILES["plugin"]
    forge(directory, file, lambda: flip(directory / file, "lm_head.dense.weight"))
    assert {"declared", "identical"} <= failed(verify_any_format(directory, base, reload=False))


def test_other_code_in_the_folder_is_caught_without_running_it(make):
    _, directory = make("factorised")
    path = directory / "modeling_factorised.py"
    forge(directory, path.name, lambda: path.write_text(path.read_text() + "\nraise SystemExit('ran')\n"))
    assert failed(verify_any_format(directory)) == {"code"}


def test_a_missing_factor_is_reported(make):
    _, directory = make("plugin")
    path = directory / FILES["plugin"]
    tensors, metadata = read_raw_tensors(path)
    kept = {name: RawTensor(t.dtype, t.shape, t.data.copy()) for name, t in tensors.items() if "basis" not in name}
    write_raw_tensors(path, kept, metadata)
    assert "readable" in failed(verify_any_format(directory))


def test_injections_own_verify_points_to_the_right_one(make):
    _, directory = make("plugin")
    with pytest.raises(InputError, match=r"wals_spark\.compress\.verify"):
        injection.verify_checkpoint(directory)


def test_the_command_line_verifies_them(make, capsys):
    base, directory = make("plugin")
    assert main(["verify", str(directory), "--base", base]) == 0
    assert "RobertaForMaskedLM, torch.float32, tied, nothing lost" in capsys.readouterr().out


@pytest.mark.parametrize("format_", FILES)
def test_the_code_of_the_model_card_runs_and_asks_nothing(make, format_, monkeypatch):
    _, directory = make(format_)
    code = (directory / "README.md").read_text().split("```python")[1].split("```")[0]

    def asked(*_):
        raise AssertionError("the user was asked whether to run remote code")

    monkeypatch.setattr("builtins.input", asked)
    found = {}
    exec(code.replace("PATH", str(directory)), found)
    assert found["tokenizer"]("the cat").input_ids
    assert found["model"].get_input_embeddings() is not None


def test_the_model_card_says_how_to_load_it(make):
    _, directory = make("factorised")
    text = (directory / "README.md").read_text()
    assert "trust_remote_code=True" in text
    assert "| **svd** | 4 |" in text
