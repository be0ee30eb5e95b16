"""``wals-spark pack`` and ``wals-spark apply`` on the command line."""

from __future__ import annotations

import pytest

from wals_spark.checkpoints.domain_pack import read_pack
from wals_spark.checkpoints.pack_command import parse_strengths
from wals_spark.cli import main
from wals_spark.errors import ConfigError


@pytest.fixture
def injected(make_checkpoint, inject):
    base = make_checkpoint()
    directory, _ = inject(base, "replace", inject__exposure="rank", inject__head_bias=0.5)
    return str(base), str(directory)


def test_pack_then_apply_then_verify(injected, tmp_path, capsys):
    base, directory = injected
    pack, applied = str(tmp_path / "bio.safetensors"), str(tmp_path / "applied")
    assert main(["pack", directory, "--base", base, "--output", pack, "--dtype", "fp32"]) == 0
    said = capsys.readouterr().out
    assert said.endswith(f"biases in fp32, exact, 0.0 MB: {pack}\n")
    assert main(["apply", pack, "--checkpoint", base, "--output", applied]) == 0
    said = capsys.readouterr().out
    assert said.endswith(f"rows changed, head bias moved: {applied}\n")
    assert len(said.splitlines()) == 1
    assert (tmp_path / "applied" / "model.safetensors").read_bytes() == (
        tmp_path / "out" / "model.safetensors"
    ).read_bytes()
    assert main(["verify", applied, "--base", base]) == 0
    assert "ok   rows of packs: rows and biases are what the packs give, to the bit" in capsys.readouterr().out


def test_int8_is_the_default_and_its_error_is_printed(injected, tmp_path, capsys):
    base, directory = injected
    pack = str(tmp_path / "bio.safetensors")
    assert main(["pack", directory, "--base", base, "--output", pack]) == 0
    assert read_pack(pack).dtype == "int8"
    assert "biases in int8, relative error 0.00" in capsys.readouterr().out
    assert main(["pack", directory, "--base", base, "--output", pack]) == 2
    assert main(["pack", directory, "--base", base, "--output", pack, "--overwrite", "--dtype", "fp16"]) == 0
    assert read_pack(pack).dtype == "fp16"


def test_several_packs_say_where_they_overlap(injected, tmp_path, capsys):
    base, directory = injected
    packs = [str(tmp_path / f"{dtype}.safetensors") for dtype in ("int8", "fp16")]
    for pack, dtype in zip(packs, ("int8", "fp16"), strict=True):
        assert main(["pack", directory, "--base", base, "--output", pack, "--dtype", dtype]) == 0
    rows = len(read_pack(packs[0]).ids)
    capsys.readouterr()
    both = ["apply", *packs, "--checkpoint", base, "--strength", "0.5,-0.25", "--output", str(tmp_path / "both")]
    assert main(both) == 0
    assert f"\n{rows} rows and " in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "both"), "--base", base]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strength", "1,2,3"], "3 strengths for 1 packs"),
        (["--strength", "much"], "--strength is 'much', expected numbers"),
        (["--strength=nan"], "strength of a pack is nan"),
        (["--checkpoint", "/not/there"], "--checkpoint: there is nothing at /not/there"),
    ],
)
def test_what_cannot_work_ends_with_2(injected, tmp_path, caplog, arguments, message):
    base, directory = injected
    pack, applied = str(tmp_path / "pack"), str(tmp_path / "applied")
    assert main(["pack", directory, "--base", base, "--output", pack]) == 0
    assert main(["apply", pack, "--checkpoint", base, "--output", applied, *arguments]) == 2
    assert message in caplog.text
    assert not (tmp_path / "applied").exists()


def test_a_damaged_pack_ends_with_2(injected, tmp_path, caplog):
    base, directory = injected
    pack = tmp_path / "pack"
    assert main(["pack", directory, "--base", base, "--output", str(pack)]) == 0
    pack.write_bytes(pack.read_bytes()[:-5])
    assert main(["apply", str(pack), "--checkpoint", base, "--output", str(tmp_path / "applied")]) == 2
    assert "it was cut short" in caplog.text


def test_an_unknown_dtype_ends_with_2(injected, tmp_path):
    base, directory = injected
    assert main(["pack", directory, "--base", base, "--output", str(tmp_path / "pack"), "--dtype", "int4"]) == 2


def test_strengths_are_numbers_with_commas_between_them():
    assert parse_strengths("1,0.5,-2") == [1.0, 0.5, -2.0]
    for odd in ("", "1,", "1;2"):
        with pytest.raises(ConfigError, match="expected numbers with commas"):
            parse_strengths(odd)
