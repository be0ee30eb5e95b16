from __future__ import annotations

import pytest

from wals_spark.pipeline import STAGES
from wals_spark.runs import Manifest, ManifestStore
from wals_spark.stage_outputs import STAGE_OF, CooccurrenceOutputs, TrainOutputs, outputs_of, require_outputs


def test_every_stage_has_a_type_of_outputs():
    assert list(STAGE_OF.values()) == list(STAGES)


def test_outputs_of_another_stage_are_refused():
    manifest = Manifest("train", "r", "complete", "f", "r", outputs={"k": 3})
    assert outputs_of(manifest, TrainOutputs)["k"] == 3
    with pytest.raises(AssertionError, match="train"):
        outputs_of(manifest, CooccurrenceOutputs)


def test_outputs_are_found_by_their_type(tmp_path):
    manifests = ManifestStore(str(tmp_path))
    manifests.write(Manifest("train", "r", "complete", "f", "r", outputs={"k": 3}))
    assert require_outputs(manifests, TrainOutputs, "r")["k"] == 3
