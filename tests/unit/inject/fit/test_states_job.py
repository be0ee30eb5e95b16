from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from wals_spark import storage
from wals_spark.errors import InputError
from wals_spark.heartbeat import Heartbeat
from wals_spark.inject.fit import states_job
from wals_spark.inject.fit.states_job import (
    PlannedPart,
    checkpoint_content,
    compute_part,
    load_encoder,
    part_path,
    plan_parts,
)
from wals_spark.mlm.hidden_states import concatenate_states
from wals_spark.mlm.state_files import part_identity, read_state_part


def test_parts_are_of_one_split_and_of_a_size():
    parts = plan_parts(["training"] * 5 + ["validation"] * 2 + ["general"], 2)
    assert [(part.split, part.start, part.stop) for part in parts] == [
        ("training", 0, 2),
        ("training", 2, 4),
        ("training", 4, 5),
        ("validation", 5, 7),
        ("general", 7, 8),
    ]
    assert [part.number for part in parts] == list(range(5))
    assert plan_parts([], 2) == []


@pytest.mark.parametrize("size", [1, 3, 7])
def test_the_states_of_a_sequence_do_not_depend_on_the_size_of_parts(make_job, size):
    job, splits = make_job()
    whole = [compute_part(job, part) for part in plan_parts(splits, 100)]
    expected = concatenate_states([read_state_part(part.path) for part in whole])
    parts = [compute_part(job, part) for part in plan_parts(splits, size)]
    found = concatenate_states([read_state_part(part.path) for part in parts])
    assert np.array_equal(found.target, expected.target)
    assert np.array_equal(found.document, expected.document)
    np.testing.assert_allclose(found.hidden.astype(float), expected.hidden.astype(float), rtol=2e-3, atol=1e-3)
    assert sum(part.positions for part in parts) == len(found) == 10 * 2 * 3
    assert sum(part.base_loss for part in parts) == pytest.approx(found.base_loss.sum())


def test_a_part_computed_again_in_any_order_has_the_same_bytes(make_job):
    job, splits = make_job()
    parts = plan_parts(splits, 3)
    first = {part.number: Path(compute_part(job, part).path).read_bytes() for part in parts}
    for part in reversed(parts):
        assert Path(compute_part(job, part).path).read_bytes() == first[part.number]


def test_the_identity_of_a_part_is_its_sequences_its_stage_and_its_weights(make_job):
    job, splits = make_job()
    part = plan_parts(splits, 3)[0]
    compute_part(job, part)
    found = {part_identity(part_path(job, part))}
    other, _ = make_job(name="other", fingerprint="0" * 16, checkpoint=Path(job.checkpoint))
    compute_part(other, part)
    found.add(part_identity(part_path(other, part)))
    compute_part(job, PlannedPart(0, "training", 1, 4))
    found.add(part_identity(part_path(job, part)))
    assert len(found) == 3


def test_a_process_loads_a_checkpoint_once_and_another_content_anew(make_job, make_checkpoint, monkeypatch):
    loaded = []
    real = states_job.load_masked_lm
    monkeypatch.setattr(states_job, "load_masked_lm", lambda source: loaded.append(source) or real(source))
    job, splits = make_job()
    for part in plan_parts(splits, 3):
        compute_part(job, part)
    assert len(loaded) == 1
    again, _ = make_job(checkpoint=Path(job.checkpoint))
    compute_part(again, plan_parts(splits, 3)[0])
    assert len(loaded) == 1
    make_checkpoint(hidden_size=32)
    changed, _ = make_job(checkpoint=Path(job.checkpoint))
    compute_part(changed, plan_parts(splits, 3)[0])
    assert len(loaded) == 2


def test_a_checkpoint_that_the_executor_does_not_have_or_has_otherwise_is_refused(make_job, make_checkpoint, tmp_path):
    job, splits = make_job()
    part = plan_parts(splits, 3)[0]
    make_checkpoint(hidden_size=32)
    with pytest.raises(InputError, match=r"has the content \w+ on this executor and \w+ on the driver"):
        compute_part(job, part)
    shutil.rmtree(job.checkpoint)
    with pytest.raises(InputError, match="must be a path that every executor sees"):
        compute_part(job, part)


def test_the_content_of_a_checkpoint_is_its_weights_and_configuration(make_checkpoint):
    directory = make_checkpoint()
    before = checkpoint_content(str(directory))
    (directory / "README.md").write_text("mine")
    assert checkpoint_content(str(directory)) == before
    config = directory / "config.json"
    config.write_text(config.read_text().replace('"gelu"', '"relu"'))
    assert checkpoint_content(str(directory)) != before


def test_a_task_tells_how_many_passes_it_has_done(make_job, tmp_path):
    job, splits = make_job()
    compute_part(job, plan_parts(splits, 7)[0], heartbeat=Heartbeat(job.scratch, "part-0"))
    assert storage.read_json(f"{job.scratch}/progress/part-0.json") == {"passes": 14}


def test_a_process_keeps_the_encoder_of_the_last_checkpoint_only():
    assert load_encoder.cache_info().maxsize == 1
