"""Compression and its verification of files that are damaged or edited: a failed check or exit 2, never a traceback."""

from __future__ import annotations

import contextlib
import json
import shutil
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from wals_spark.checkpoints.artifact import manifest_sha256
from wals_spark.compress.compress_checkpoint import CompressionRequest, compress_checkpoint
from wals_spark.compress.verify import verify_any_format
from wals_spark.errors import ConfigError, InputError

FUZZ = settings(
    max_examples=200, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FILES = {
    "dense": "model.safetensors",
    "factorised": "model.safetensors",
    "plugin": "model.factorised.safetensors",
}
NESTED = ("stored", "parameters", "embedding", "head_bias", "base", "fit")
ODD = [None, True, -1, 3, 1.5, "x", "../x", "\0", [], {}, [None], {"x": None}]


def ours(call):
    """Run something; any error but a ConfigError or InputError, which exit with 2, is a failure of the test."""
    with contextlib.suppress(ConfigError, InputError):
        call()


@pytest.fixture
def compressed(make_checkpoint, tmp_path):
    def make(format_):
        base = make_checkpoint()
        compress_checkpoint(CompressionRequest(str(base), str(tmp_path / "out"), rank=4, format=format_))
        return str(base), tmp_path / "out"

    return make


@pytest.mark.slow
@pytest.mark.parametrize("format_", FILES)
def test_every_key_of_injection_json_may_be_missing_or_anything(compressed, format_):
    base, directory = compressed(format_)
    manifest = json.loads((directory / "injection.json").read_text())
    keys = [(key,) for key in manifest] + [(key, inner) for key in NESTED for inner in manifest.get(key, ())]
    for path in keys:
        for odd in [(), *((value,) for value in ODD)]:
            copy = json.loads(json.dumps(manifest))
            inner = copy if len(path) == 1 else copy[path[0]]
            del inner[path[-1]]
            if odd:
                inner[path[-1]] = odd[0]
            if path != ("sha256",):
                copy["sha256"] = manifest_sha256(copy)
            (directory / "injection.json").write_text(json.dumps(copy))
            ours(partial(verify_any_format, directory, None if odd else base, reload=False))


@pytest.mark.parametrize("format_", FILES)
@pytest.mark.parametrize("part", ["coordinates", "basis", "mean"])
def test_a_factor_of_another_shape_or_type_fails_a_check(compressed, format_, part):
    base, directory = compressed(format_)
    path = directory / ("factors.safetensors" if format_ == "dense" else FILES[format_])
    state = load_file(path)
    name = next(name for name in state if name.endswith(part))
    value = state[name]
    for odd in (value[:-1].clone(), value[None].clone(), value.flatten()[0].clone(), value[:0].clone(), value.int()):
        save_file({**state, name: odd}, path, {"format": "pt"})
        report = verify_any_format(directory, base, reload=False)
        assert not report.passed
        assert len(report.failures) >= 2  # the hash of the file, and what is wrong with it


@pytest.mark.parametrize("format_", FILES)
@pytest.mark.parametrize(
    "name", ["config.json", "README.md", "factors.safetensors", "weights", "modeling_factorised.py"]
)
@pytest.mark.parametrize("change", ["directory", "missing", "garbage", "list"])
def test_a_file_of_another_kind_fails_a_check(compressed, format_, name, change):
    base, directory = compressed(format_)
    path = directory / (FILES[format_] if name == "weights" else name)
    if not path.exists():
        pytest.skip("the format has no such file")
    path.unlink()
    if change == "directory":
        path.mkdir()
    elif change != "missing":
        path.write_bytes(b"[]" if change == "list" else b"\xff garbage")
    report = verify_any_format(directory, base, reload=False)
    assert any(line.startswith("files: ") and path.name in line for line in report.failures)


@pytest.mark.slow
@FUZZ
@given(
    format_=st.sampled_from(sorted(FILES)),
    name=st.sampled_from(["config.json", "weights", "factors.safetensors", "injection.json"]),
    place=st.integers(0, 1 << 20),
    content=st.binary(min_size=1, max_size=12),
    cut=st.booleans(),
)
def test_no_damage_raises_anything_else(make_checkpoint, tmp_path, format_, name, place, content, cut):
    base, directory = tmp_path / "model", tmp_path / format_
    if not base.exists():
        make_checkpoint()
    if not directory.exists():
        compress_checkpoint(CompressionRequest(str(base), str(directory), rank=4, format=format_))
    path = directory / (FILES[format_] if name == "weights" else name)
    good = path.read_bytes()
    place %= min(len(good), 4096)
    path.write_bytes(good[:place] + content + (b"" if cut else good[place + len(content) :]))
    try:
        ours(partial(verify_any_format, directory, str(base), reload=False))
    finally:
        path.write_bytes(good)


@settings(FUZZ, max_examples=60)
@given(
    name=st.sampled_from(["config.json", "model.safetensors", "tokenizer.json"]),
    place=st.integers(0, 1 << 20),
    content=st.binary(min_size=1, max_size=12),
    cut=st.booleans(),
)
def test_no_damage_of_the_checkpoint_raises_anything_else(make_checkpoint, tmp_path, name, place, content, cut):
    base, text = tmp_path / "model", tmp_path / "text.txt"
    if not base.exists():
        make_checkpoint()
        text.write_text("the cat sat on the mat while a dog ran over green hills\n" * 20)
    good = (base / name).read_bytes()
    place %= min(len(good), 4096)
    (base / name).write_bytes(good[:place] + content + (b"" if cut else good[place + len(content) :]))
    request = CompressionRequest(
        str(base), str(tmp_path / "out"), method="kronecker", rank=3, text=str(text), sequences=2, length=8
    )
    try:
        ours(partial(compress_checkpoint, request))
    finally:
        (base / name).write_bytes(good)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)


@pytest.mark.slow
def test_no_value_of_config_json_raises_anything_else(make_checkpoint, tmp_path):
    base, text = make_checkpoint(), tmp_path / "text.txt"
    text.write_text("the cat sat on the mat while a dog ran over green hills\n" * 20)
    config = json.loads((base / "config.json").read_text())
    request = CompressionRequest(
        str(base), str(tmp_path / "out"), method="kronecker", rank=3, text=str(text), sequences=2, length=8
    )
    for key in config:
        for odd in ("x", -1, None, 0, []):
            (base / "config.json").write_text(json.dumps({**config, key: odd}))
            ours(partial(compress_checkpoint, request))
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
