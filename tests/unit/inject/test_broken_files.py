"""Injection into checkpoints that are damaged or edited: exit 2 or a result, never a traceback."""

from __future__ import annotations

import contextlib
import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wals_spark.checkpoints.artifact import manifest_sha256
from wals_spark.checkpoints.verify import read_manifest
from wals_spark.errors import ConfigError, GateError, InputError
from wals_spark.inject.stages import InjectStage
from wals_spark.inject.verify import verify_injection


@contextlib.contextmanager
def ours():
    """Any error but one of ours that a user can mend is a failure of the test."""
    with contextlib.suppress(ConfigError, InputError, GateError):
        yield


@pytest.mark.slow
@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    mode=st.sampled_from(["blend", "trim", "init"]),
    name=st.sampled_from(["config.json", "model.safetensors", "tokenizer.json"]),
    place=st.integers(0, 1 << 20),
    content=st.binary(min_size=1, max_size=12),
    cut=st.booleans(),
)
def test_no_damage_of_the_checkpoint_raises_anything_else(
    make_checkpoint, make_config, inject, tmp_path, mode, name, place, content, cut
):
    base = tmp_path / "model"
    if not base.exists():
        make_checkpoint()
    good = (base / name).read_bytes()
    place %= len(good)
    (base / name).write_bytes(good[:place] + content + (b"" if cut else good[place + len(content) :]))
    try:
        with ours():
            InjectStage().check(make_config(inject__mode=mode, inject__checkpoint=str(base)))
        with ours():
            inject(base, mode)
    finally:
        (base / name).write_bytes(good)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["blend", "init"])
def test_no_value_of_config_json_raises_anything_else(make_checkpoint, make_config, inject, tmp_path, mode):
    base = make_checkpoint()
    config = json.loads((base / "config.json").read_text())
    for key in config:
        for odd in ("x", -1, None, []):
            (base / "config.json").write_text(json.dumps({**config, key: odd}))
            with ours():
                InjectStage().check(make_config(inject__mode=mode, inject__checkpoint=str(base)))
            with ours():
                inject(base, mode)
            shutil.rmtree(tmp_path / "out", ignore_errors=True)


ODD = [None, True, -1, 3, 1e300, "x", [], {}, [None], {"x": None}]


def test_no_recorded_parameter_or_figure_raises_anything_else(make_checkpoint, inject):
    base = make_checkpoint()
    directory, _ = inject(base)
    good = read_manifest(directory)
    places = [("parameters", key) for key in good["parameters"]] + [("gate", key) for key in good["gate"]]
    places += [("fit", "strengths"), ("gate", None), ("parameters", None), ("mode", None)]
    for section, key in places:
        for odd in ODD:
            manifest = json.loads(json.dumps(good))
            if key is None:
                manifest[section] = odd
            else:
                manifest[section][key] = odd
            manifest["sha256"] = manifest_sha256(manifest)
            (directory / "injection.json").write_text(json.dumps(manifest))
            with ours():
                verify_injection(directory, str(base), reload=False)


@settings(max_examples=80, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["config.json", "model.safetensors", "tokenizer.json", "factors.safetensors"]),
    place=st.integers(0, 1 << 20),
    content=st.binary(min_size=1, max_size=12),
)
def test_no_damage_of_a_result_raises_anything_else(make_checkpoint, inject, tmp_path, name, place, content):
    if not (tmp_path / "out").exists():
        inject(make_checkpoint())
    path = tmp_path / "out" / name
    good = path.read_bytes()
    place %= len(good)
    path.write_bytes(good[:place] + content + good[place + len(content) :])
    try:
        with ours():
            assert not verify_injection(tmp_path / "out", str(tmp_path / "model"), reload=False).passed or (
                path.read_bytes() == good
            )
    finally:
        path.write_bytes(good)
