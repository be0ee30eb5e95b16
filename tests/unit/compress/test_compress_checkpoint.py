from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from wals_spark.checkpoints.checkpoint import embedding_values, open_checkpoint
from wals_spark.checkpoints.verify import read_manifest
from wals_spark.cli import main
from wals_spark.compress import methods
from wals_spark.compress.closed_form import solve_closed_form
from wals_spark.compress.compress_checkpoint import CompressionRequest, compress_checkpoint
from wals_spark.errors import ConfigError, InputError

EMBEDDING = "roberta.embeddings.word_embeddings.weight"


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("the cat sat on the mat while a dog ran over green hills and rivers flow down to seas\n" * 60)
    return str(path)


@pytest.fixture
def squeeze(tmp_path):
    """Compress into a directory of the test; returns the result."""

    def run(base, name="out", **options):
        return compress_checkpoint(CompressionRequest(str(base), str(tmp_path / name), **options))

    return run


def matrix(directory):
    return embedding_values(open_checkpoint(str(directory)))


@pytest.mark.parametrize("method", methods.METHODS)
def test_every_method_writes_a_matrix_of_its_rank(make_checkpoint, corpus, squeeze, tmp_path, method):
    base = make_checkpoint()
    result = squeeze(base, method=method, rank=6, text=corpus, sequences=6, length=16)
    new = matrix(tmp_path / "out").astype(np.float64)
    singular = np.linalg.svd(new - new.mean(axis=0), compute_uv=False)
    assert (singular > 1e-5 * singular[0]).sum() <= 7  # the mean of the factors is not quite that of the rows
    chosen = result.choices[0]
    assert (chosen.name, chosen.rank, chosen.chosen) == (method, 6, True)
    assert chosen.mse == pytest.approx(float(((new - matrix(base)) ** 2).mean()), rel=1e-6)


def test_each_method_wins_at_its_own_measure(make_checkpoint, corpus, squeeze):
    base = make_checkpoint()
    result = squeeze(base, method="svd", rank=4, text=corpus, sequences=6, length=16)
    low_rank = [choice for choice in result.choices if choice.rank]
    assert {choice.name for choice in low_rank} == {"svd", "frequency", "logits", "kronecker", "fisher by rows"}
    for measure, best in (("mse", "svd"), ("weighted_mse", "frequency"), ("logit_rmse", "logits")):
        assert min(low_rank, key=lambda choice: getattr(choice, measure)).name == best


def test_controls_stand_at_the_same_bytes(make_checkpoint, squeeze):
    result = squeeze(make_checkpoint(), rank=12)
    controls = [choice for choice in result.choices if choice.rank is None]
    assert controls
    assert all(choice.bytes <= result.choices[0].bytes for choice in controls)


def test_wals_ends_at_the_svd_and_the_bound_is_recorded(make_checkpoint, squeeze, tmp_path):
    base = make_checkpoint()
    wals = squeeze(base, preset="extra_quality", rank=5).choices[0]
    fit = read_manifest(tmp_path / "out")["fit"]
    assert 0 <= fit["error"] / fit["bound"] - 1 < 1e-3
    svd = squeeze(base, "svd", rank=5).choices[0]
    assert wals.mse / svd.mse == pytest.approx(fit["error"] / fit["bound"], rel=1e-5)


def test_presets_are_what_they_say():
    assert methods.PRESETS["standard"].rank == 128
    extra = methods.PRESETS["extra_quality"]
    assert (extra.rank, extra.sweeps, extra.ridge, extra.precision, extra.tolerance) == (
        512,
        100,
        1e-4,
        "float64",
        1e-7,
    )


def test_a_target_error_picks_the_least_rank(make_checkpoint, squeeze):
    base = make_checkpoint()
    curve = solve_closed_form(matrix(base)).curve
    target = (curve[4] + curve[5]) / 2
    found = squeeze(base, target_mse=float(target)).choices[0]
    assert found.rank == 5
    assert found.mse <= target


def test_target_bytes_pick_the_greatest_rank_that_fits(make_checkpoint, squeeze):
    base = make_checkpoint()
    V = open_checkpoint(str(base)).vocab_size
    found = squeeze(base, target_bytes=((V + 16) * 5 + 16) * 4 + 30).choices[0]
    assert found.rank == 5
    assert found.bytes == ((V + 16) * 5 + 16) * 4


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_bytes_are_those_of_the_checkpoints_dtype(make_checkpoint, squeeze, tmp_path, dtype):
    base = make_checkpoint(dtype=dtype)
    V = open_checkpoint(str(base)).vocab_size
    assert squeeze(base, rank=3).choices[0].bytes == ((V + 16) * 3 + 16) * 2
    kept = open_checkpoint(str(tmp_path / "out")).tensors[EMBEDDING].dtype
    assert kept == open_checkpoint(str(base)).tensors[EMBEDDING].dtype


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rank": 17}, InputError, "expected 1 to 16"),
        ({"rank": 0}, InputError, "expected 1 to 16"),
        ({}, InputError, "the preset's rank is 128"),
        ({"rank": 3, "target_mse": 0.1}, ConfigError, "--rank and --target-mse"),
        ({"target_mse": -1.0}, InputError, "the full rank 16 leaves"),
        ({"target_bytes": 10}, InputError, "rank 1 takes"),
        ({"method": "frequency"}, ConfigError, "--frequencies or --text"),
        ({"method": "logits"}, ConfigError, "--text"),
        ({"method": "fisher", "text": "x", "target_mse": 1.0}, ConfigError, "closed form"),
        ({"method": "magic"}, ConfigError, "expected one of svd"),
        ({"preset": "best"}, ConfigError, "expected one of standard, extra_quality"),
        ({"format": "gguf"}, ConfigError, "expected one of dense"),
        ({"rank": 3, "sequences": 0}, ConfigError, "--sequences: found 0"),
        ({"rank": 3, "sequences": -4}, ConfigError, "--sequences: found -4"),
        ({"rank": 3, "frequencies": "nothing.parquet"}, InputError, "nothing at nothing.parquet"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_written(
    make_checkpoint, squeeze, tmp_path, options, error, message
):
    with pytest.raises(error, match=message):
        squeeze(make_checkpoint(), **options)
    assert not (tmp_path / "out").exists()


def test_an_output_that_exists_is_kept_unless_overwritten(make_checkpoint, squeeze, tmp_path):
    base = make_checkpoint()
    squeeze(base, rank=3)
    before = read_manifest(tmp_path / "out")["sha256"]
    with pytest.raises(InputError, match="--overwrite"):
        squeeze(base, rank=4)
    assert read_manifest(tmp_path / "out")["sha256"] == before
    squeeze(base, rank=4, overwrite=True)
    assert read_manifest(tmp_path / "out")["parameters"]["rank"] == 4
    with pytest.raises(ConfigError, match="the checkpoint itself"):
        compress_checkpoint(CompressionRequest(str(base), str(base), rank=3, overwrite=True))


@pytest.mark.parametrize("place", ["working directory", "parent of the checkpoint", "notes", "notes beside a result"])
def test_overwrite_deletes_nothing_of_others(make_checkpoint, squeeze, tmp_path, monkeypatch, place):
    base = make_checkpoint("models/base")
    work, notes = tmp_path / "work", tmp_path / "notes"
    work.mkdir()
    monkeypatch.chdir(work)
    if place == "notes beside a result":
        squeeze(base, "notes", rank=3)
    notes.mkdir(exist_ok=True)
    (notes / "notes.txt").write_text("mine")
    output, message = {
        "working directory": (".", "is the working directory"),
        "parent of the checkpoint": (str(base.parent), r"of the checkpoint \(--checkpoint\)"),
    }.get(place, (str(notes), r"notes\.txt"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(methods, "factorise_embedding", None)  # refused before any work
    assert main(["compress", "--checkpoint", str(base), "--output", output, "--rank", "3", "--overwrite"]) == 2
    with pytest.raises((ConfigError, InputError), match=f"--output: .*{message}"):
        compress_checkpoint(CompressionRequest(str(base), output, rank=3, overwrite=True))
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_checkpoint_without_a_masked_lm_head_has_no_hidden_states(make_checkpoint, corpus, squeeze):
    base = make_checkpoint(class_name="RobertaForSequenceClassification")
    with pytest.raises(InputError, match="no masked-LM head"):
        squeeze(base, rank=3, method="kronecker", text=corpus)
    assert squeeze(base, rank=3, method="frequency", text=corpus).choices[0].weighted_mse is not None


def test_text_longer_than_the_models_positions_is_refused(make_checkpoint, corpus, squeeze):
    with pytest.raises(InputError, match=r"38 positions .* a sequence of the text 128 tokens"):
        squeeze(make_checkpoint(), rank=3, text=corpus)
    squeeze(make_checkpoint(), rank=3, text=corpus, sequences=2, length=38)


def test_an_untied_head_is_refused(make_checkpoint, squeeze):
    base = make_checkpoint()
    state = load_file(base / "model.safetensors")
    save_file({**state, "lm_head.decoder.weight": state[EMBEDDING] + 1}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="untied"):
        squeeze(base, rank=3)


def test_rows_that_are_not_numbers_are_refused(make_checkpoint, squeeze):
    def damage(model):
        model.get_input_embeddings().weight[7, 3] = float("nan")

    with pytest.raises(InputError, match=r"first: \[7\]"):
        squeeze(make_checkpoint(edit=damage), rank=3)


def test_rows_beyond_the_tokenizer_are_compressed_too(make_checkpoint, corpus, squeeze, tmp_path):
    plain = make_checkpoint()
    size = open_checkpoint(str(plain)).vocab_size
    base = make_checkpoint("padded", vocab_size=size + 8)
    squeeze(base, rank=3, method="kronecker", text=corpus, sequences=4, length=16)
    assert matrix(tmp_path / "out").shape == (size + 8, 16)
    short = make_checkpoint("short", vocab_size=size - 8)
    with pytest.raises(InputError, match="tokens were added"):
        squeeze(short, "other", rank=3)


def test_bin_and_sharded_checkpoints_give_the_same_result(make_checkpoint, squeeze, tmp_path):
    base = make_checkpoint()
    squeeze(base, rank=3)
    state = load_file(base / "model.safetensors")
    binary = make_checkpoint("binary")
    (binary / "model.safetensors").unlink()
    torch.save(state, binary / "pytorch_model.bin")
    squeeze(binary, "from-bin", rank=3)
    sharded = make_checkpoint("sharded")
    (sharded / "model.safetensors").unlink()
    names = sorted(state)
    where = {}
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: state[name] for name in part}, sharded / f"model-{number}.safetensors", {"format": "pt"})
        where |= dict.fromkeys(part, f"model-{number}.safetensors")
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    squeeze(sharded, "from-shards", rank=3)
    for name in ("from-bin", "from-shards"):
        assert np.array_equal(matrix(tmp_path / name), matrix(tmp_path / "out"))


def test_the_command_prints_the_table_and_needs_no_spark(make_checkpoint, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = ["compress", "--checkpoint", str(make_checkpoint()), "--output", str(output)]
    assert main([*arguments, "--rank", "4", "--format", "plugin"]) == 0
    printed = capsys.readouterr().out
    assert "svd *" in printed
    assert f"* written to {output} (plugin)" in printed
    assert main([*arguments, "--rank", "4"]) == 2
    assert main([*arguments, "--rank", "4", "--target-bytes", "100"]) == 2
