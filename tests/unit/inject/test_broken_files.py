"""Injection into checkpoints that are damaged or edited: exit 2 or a result, never a traceback."""

from __future__ import annotations

import contextlib
import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wals_spark.errors import ConfigError, GateError, InputError
from wals_spark.inject.stages import InjectStage


@contextlib.contextmanager
def ours():
    """Any error but one of ours that a user can mend is a failure of the test."""
    with contextlib.suppress(ConfigError, InputError, GateError):
        yield


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
