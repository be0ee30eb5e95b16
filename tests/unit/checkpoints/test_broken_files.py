"""Files of a checkpoint that are damaged, edited or of another kind: a failed check or exit 2, never a traceback."""

from __future__ import annotations

import contextlib
import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from wals_spark.checkpoints.artifact import manifest_sha256
from wals_spark.checkpoints.checkpoint import embedding_values, open_checkpoint
from wals_spark.checkpoints.outliers import checkpoint_tokens, compare_checkpoints
from wals_spark.checkpoints.raw_tensor import file_sha256
from wals_spark.checkpoints.safetensors_file import read_raw_tensors
from wals_spark.checkpoints.verify import read_manifest, verify_checkpoint
from wals_spark.errors import ConfigError, InputError

FUZZ = settings(
    max_examples=200, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
DAMAGED = ["config.json", "model.safetensors", "factors.safetensors", "tokenizer.json"]
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
ODD = [None, True, -1, 3, 1.5, "x", "../x", "\0", [], {}, [None], [1 << 70], {"x": None}, "\ud800"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def header_file(path, header, body=b"\0" * 64):
    """A safetensors file with any JSON, or bytes, as its header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


def tensor(begin=0, end=8, shape=(2,), dtype="F32", **changed):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end], **changed}


def ours(call):
    """Run something; any error but a ConfigError or InputError, which exit with 2, is a failure of the test."""
    with contextlib.suppress(ConfigError, InputError):
        call()


@pytest.mark.parametrize(
    "header",
    [
        [1, 2, 3],
        {"a": 5},
        3,
        "x",
        None,
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        {"a": {}},
        {"a": {"dtype": "F32", "shape": [2]}},
        {"a": tensor(data_offsets=None)},
        {"a": tensor(data_offsets=[0])},
        {"a": tensor(data_offsets=[0, 8, 8])},
        {"a": tensor(data_offsets=[0, "8"])},
        {"a": tensor(data_offsets={"0": 8})},
        {"a": tensor(-8, 0)},
        {"a": tensor(8, 0)},
        {"a": tensor(0, 1 << 80)},
        {"a": tensor(), "b": tensor(4, 12)},
        {"a": tensor(), "b": tensor()},
        {"a": tensor(shape=[-2])},
        {"a": tensor(shape=[True, 2])},
        {"a": tensor(shape=[1.0, 2])},
        {"a": tensor(shape=[1 << 62, 1 << 62])},
        {"a": tensor(shape=[1] * 70 + [2])},
        {"a": {**tensor(), "shape": "2"}},
        {"a": tensor(dtype=4)},
        {"a": tensor(dtype="F4")},
        {"__metadata__": [], "a": tensor()},
        {"__metadata__": {"format": 3}, "a": tensor()},
        {"\ud800": tensor()},
    ],
    ids=lambda header: f"{header!r:.50}",
)
def test_broken_safetensors_headers_are_named(tmp_path, header):
    with pytest.raises(InputError, match=r"odd\.safetensors"):
        read_raw_tensors(header_file(tmp_path / "odd.safetensors", header))


@pytest.mark.slow
@FUZZ
@given(
    st.one_of(
        VALUES,
        st.dictionaries(
            st.text(max_size=3),
            st.dictionaries(
                st.sampled_from(["dtype", "shape", "data_offsets"]),
                VALUES | st.just("F32") | st.just([0, 8]) | st.just([2]),
            ),
        ),
    )
)
def test_no_safetensors_header_raises_anything_else(tmp_path, header):
    text = json.dumps(header).encode()
    ours(lambda: read_raw_tensors(header_file(tmp_path / "odd.safetensors", text)))


@FUZZ
@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(tmp_path, content):
    (tmp_path / "odd.safetensors").write_bytes(content)
    ours(lambda: read_raw_tensors(tmp_path / "odd.safetensors"))


def test_a_pointer_of_git_lfs_is_called_so(make_checkpoint, tmp_path):
    base = make_checkpoint()
    for name in ("model.safetensors", "config.json", "model.safetensors.index.json", "pytorch_model.bin"):
        broken = tmp_path / f"lfs {name}"
        shutil.copytree(base, broken)
        if name not in ("config.json", "model.safetensors"):
            (broken / "model.safetensors").unlink()
        (broken / name).write_bytes(LFS)
        with pytest.raises(InputError, match=f"{name} is a Git LFS pointer.*git lfs pull"):
            open_checkpoint(str(broken))


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"[]", b"3", b"null", b"\xff", b'{"model_type": []}', b"[" * 100_000]
)
def test_a_broken_config_is_named(make_checkpoint, content):
    directory = make_checkpoint()
    (directory / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json"):
        open_checkpoint(str(directory))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_directory_or_nothing_in_place_of_a_file_is_named(make_checkpoint, name):
    directory = make_checkpoint()
    (directory / name).unlink()
    call = checkpoint_tokens if name == "tokenizer.json" else open_checkpoint
    ours(lambda: call(str(directory)))
    (directory / name).mkdir()
    ours(lambda: call(str(directory)))


def test_every_key_of_config_json_may_be_anything(make_checkpoint):
    directory = make_checkpoint()
    config = json.loads((directory / "config.json").read_text())
    for key in config:
        for odd in ODD:
            (directory / "config.json").write_text(json.dumps({**config, key: odd}))
            ours(lambda: embedding_values(open_checkpoint(str(directory))))
        (directory / "config.json").write_text(json.dumps({name: config[name] for name in config if name != key}))
        ours(lambda: embedding_values(open_checkpoint(str(directory))))


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"garbage",
        b"[]",
        b"{}",
        b'{"weight_map": []}',
        b'{"weight_map": {}}',
        b'{"weight_map": {"a": 3}}',
        b'{"weight_map": {"a": null}}',
        b'{"weight_map": {"a": "../other/model.safetensors"}}',
        b'{"weight_map": {"a": "/etc/model.safetensors"}}',
        b'{"weight_map": {"a": "x/../../model.safetensors"}}',
        b'{"weight_map": {"a": "nothing.safetensors"}}',
        b'{"weight_map": {"a": "config.json"}}',
        b'{"weight_map": {"a": "."}}',
        b'{"weight_map": {"a": "a\\u0000.safetensors"}}',
        b'{"weight_map": {"a": "\\ud800.safetensors"}}',
        b'{"weight_map": {"a": "' + b"a" * 5000 + b'.safetensors"}}',
    ],
)
def test_a_broken_index_is_named_and_nothing_outside_is_read(make_checkpoint, tmp_path, index):
    directory = make_checkpoint()
    (tmp_path / "other").mkdir()
    shutil.copy(directory / "model.safetensors", tmp_path / "other" / "model.safetensors")
    shutil.copy(directory / "model.safetensors", tmp_path / "model.safetensors")
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors.index.json").write_bytes(index)
    with pytest.raises(InputError, match=r"model\.safetensors\.index\.json"):
        open_checkpoint(str(directory))


def test_tensors_of_other_shapes_and_types_are_refused(make_checkpoint):
    directory = make_checkpoint()
    state = load_file(directory / "model.safetensors")
    for name in ("roberta.embeddings.word_embeddings.weight", "lm_head.bias"):
        for odd in (torch.zeros(()), torch.zeros(0), torch.zeros(3), torch.zeros(2, 3, 4), state[name].long()):
            save_file({**state, name: odd}, directory / "model.safetensors", {"format": "pt"})
            ours(lambda: embedding_values(open_checkpoint(str(directory))))


@FUZZ
@given(st.binary(max_size=300), st.integers(0, 1 << 20))
def test_no_bytes_of_a_bin_file_raise_anything_else(tmp_path, content, place):
    path = tmp_path / "pytorch_model.bin"
    if not (tmp_path / "config.json").is_file():
        (tmp_path / "config.json").write_text('{"model_type": "roberta", "architectures": ["RobertaModel"]}')
        torch.save({"a": torch.zeros(3)}, tmp_path / "good")
    good = (tmp_path / "good").read_bytes()
    place %= len(good)
    for data in (content, good[:place] + content + good[place + len(content) :]):
        path.write_bytes(data)
        ours(lambda: open_checkpoint(str(tmp_path)))


def paths_of(value, depth=4):
    """The keys of nested objects; of a mapping of names to hashes one entry."""
    if not isinstance(value, dict) or depth == 0:
        return []
    keys = list(value)[:1] if len(value) > 12 and all(isinstance(each, str) for each in value.values()) else list(value)
    return [(key, *rest) for key in keys for rest in [(), *paths_of(value[key], depth - 1)]]


def edited(manifest, path, *odd):
    """A copy without a key, or with another value of it, signed again."""
    copy = json.loads(json.dumps(manifest))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    if odd:
        inner[path[-1]] = odd[0]
    else:
        del inner[path[-1]]
    if path != ("sha256",) and "\ud800" not in odd:
        copy["sha256"] = manifest_sha256(copy)
    return copy


@pytest.fixture
def injected(make_checkpoint, inject):
    base = make_checkpoint()
    directory, manifest = inject(base)
    return str(base), directory, json.loads(json.dumps(manifest))


@pytest.mark.slow
def test_every_key_of_injection_json_may_be_missing_or_anything(injected):
    base, directory, manifest = injected
    for path in paths_of(manifest):
        for odd in [(), *((value,) for value in ODD)]:
            (directory / "injection.json").write_text(json.dumps(edited(manifest, path, *odd)))
            ours(partial(verify_checkpoint, directory, None if odd else base, reload=False))


@pytest.mark.parametrize(
    "key",
    ["mode", "files", "tensors", "base.tensors", "embedding.tensor", "embedding.protected", "head_bias.changed", "fit"],
)
def test_a_key_that_is_missing_or_of_another_type_is_named(injected, key):
    _, directory, manifest = injected
    for odd in ((), (3.5,)):
        (directory / "injection.json").write_text(json.dumps(edited(manifest, tuple(key.split(".")), *odd)))
        with pytest.raises(InputError, match=rf"injection\.json.*{key}"):
            verify_checkpoint(directory, reload=False)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, LFS, None])
def test_an_injection_json_that_is_none_is_named(injected, content):
    _, directory, _ = injected
    (directory / "injection.json").unlink()
    if content is None:
        (directory / "injection.json").mkdir()
    else:
        (directory / "injection.json").write_bytes(content)
    with pytest.raises(InputError, match=r"injection\.json"):
        read_manifest(directory)


def test_a_hub_name_or_nothing_is_not_called_unwritten(tmp_path):
    for source in ("org/name", tmp_path / "nothing"):
        with pytest.raises(InputError, match=r"there is no directory .*\(of one on the hub: of a download\)"):
            verify_checkpoint(source)
    with pytest.raises(InputError, match="was not written by wals-spark inject or compress"):
        verify_checkpoint(tmp_path)


@pytest.mark.parametrize("column", ["origin", "displacement", "base_row_hashes", "share"])
@pytest.mark.parametrize("change", ["missing", "dtype", "short", "long", "matrix", "scalar"])
def test_a_column_of_the_factors_that_is_missing_or_odd_fails_a_check(injected, column, change):
    base, directory, manifest = injected
    columns = load_file(directory / "factors.safetensors")
    value = columns.pop(column)
    other = {
        "dtype": lambda: value.to(torch.uint8),
        "short": value[:-1].clone,
        "long": lambda: torch.cat([value, value]),
        "matrix": value[None].clone,
        "scalar": value[0].clone,
    }
    if change != "missing":
        columns[column] = other[change]()
    save_file(columns, directory / "factors.safetensors")
    manifest["files"]["factors.safetensors"] = file_sha256(directory / "factors.safetensors")
    manifest["sha256"] = manifest_sha256(manifest)
    (directory / "injection.json").write_text(json.dumps(manifest))
    report = verify_checkpoint(directory, base, reload=False)
    if (column, change) != ("share", "short"):  # shares end with the tokens of the corpus
        assert not report.passed
        assert column == "base_row_hashes" or any(column in line for line in report.failures)


def test_origins_out_of_range_fail_a_check(injected):
    base, directory, _ = injected
    columns = load_file(directory / "factors.safetensors")
    for odd in (-2, 1 << 40, -(1 << 63)):
        columns["origin"][7] = odd
        save_file(columns, directory / "factors.safetensors")
        assert any("origin names rows" in line for line in verify_checkpoint(directory, base, reload=False).failures)


@pytest.mark.parametrize(
    "name", ["README.md", "config.json", "model.safetensors", "factors.safetensors", "tokenizer.json"]
)
def test_a_directory_in_place_of_a_file_fails_a_check(injected, name):
    base, directory, _ = injected
    (directory / name).unlink()
    (directory / name).mkdir()
    report = verify_checkpoint(directory, base, reload=False)
    assert any(line.startswith("files: ") and name in line for line in report.failures)


@pytest.mark.parametrize("content", [None, b"garbage", b"[]", b'{"model_type": "roberta"}'])
def test_a_broken_config_fails_the_reload(injected, content):
    _, directory, _ = injected
    (directory / "config.json").unlink()
    if content is not None:
        (directory / "config.json").write_bytes(content)
    report = verify_checkpoint(directory)
    assert any(line.startswith("reload: ") and "config.json" in line for line in report.failures)


@pytest.mark.slow
@FUZZ
@given(
    name=st.sampled_from(
        ["config.json", "model.safetensors", "factors.safetensors", "injection.json", "tokenizer.json"]
    ),
    place=st.integers(0, 1 << 20),
    content=st.binary(min_size=1, max_size=12),
    cut=st.booleans(),
)
def test_no_damage_raises_anything_else(injected, name, place, content, cut):
    base, directory, _ = injected
    good = (directory / name).read_bytes()
    place %= min(len(good), 4096)
    (directory / name).write_bytes(good[:place] + content + (b"" if cut else good[place + len(content) :]))
    try:
        ours(lambda: verify_checkpoint(directory, base, reload=False))
        ours(lambda: compare_checkpoints(base, str(directory)))
        ours(lambda: checkpoint_tokens(str(directory)))
    finally:
        (directory / name).write_bytes(good)


@pytest.mark.slow
@FUZZ
@given(VALUES)
def test_no_json_raises_anything_else(injected, value):
    base, directory, manifest = injected
    if isinstance(value, dict):
        value = {**manifest, **value, "format": "wals_spark injection"}
    for name in ("config.json", "injection.json", "tokenizer.json"):
        good = (directory / name).read_bytes()
        (directory / name).write_text(json.dumps(value))
        try:
            ours(lambda: verify_checkpoint(directory, base, reload=False))
            ours(lambda: compare_checkpoints(base, str(directory)))
        finally:
            (directory / name).write_bytes(good)


def test_a_good_checkpoint_still_passes(injected):
    base, directory, _ = injected
    assert verify_checkpoint(directory, base, reload=False).passed
    assert np.isfinite(embedding_values(open_checkpoint(base))).all()
