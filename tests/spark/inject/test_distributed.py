from __future__ import annotations

import numpy as np
import pytest

from wals_spark.checkpoints.checkpoint import embedding_values, open_checkpoint
from wals_spark.checkpoints.verify import read_manifest
from wals_spark.config import Config
from wals_spark.factors.store import read_vectors
from wals_spark.inject import align
from wals_spark.inject.distributed import fold_sums_in_spark, sums_from_bytes, sums_to_bytes
from wals_spark.inject.stages import InjectStage
from wals_spark.stage import run_stage

pytestmark = pytest.mark.spark
EMBEDDING = "roberta.embeddings.word_embeddings.weight"


def test_sums_survive_the_journey():
    generator = np.random.default_rng(0)
    sums = align.accumulate(*(generator.standard_normal((9, n)) for n in (3, 5)), generator.random(9))
    again = sums_from_bytes(sums_to_bytes(sums), 3)
    assert (again.count, again.weight, again.yy) == (9, sums.weight, sums.yy)
    assert all(np.array_equal(getattr(again, name), getattr(sums, name)) for name in ("x", "y", "xx", "xy"))


def test_in_spark_they_are_what_one_process_sums(context):
    made = context()
    source = made.config.inject.checkpoint
    U = read_vectors(made.tables, "default", "u").matrix
    E = embedding_values(open_checkpoint(source))
    generator = np.random.default_rng(1)
    anchors = np.sort(generator.permutation(len(U))[:300])
    shuffled, weight, fold = generator.permutation(anchors), generator.random(300), generator.integers(0, 4, 300)
    found = fold_sums_in_spark(made, "row", source)(shuffled, anchors, weight, fold, 5)
    expected = align.sums_by_fold(U, E, weight, fold, 5, u_rows=shuffled, e_rows=anchors)
    for one, other in zip(found, expected, strict=True):
        assert one.count == other.count
        assert one.weight == pytest.approx(other.weight, rel=1e-12)
        np.testing.assert_allclose(one.xx, other.xx, rtol=1e-10, atol=1e-9)
        np.testing.assert_allclose(one.xy, other.xy, rtol=1e-10, atol=1e-9)


def test_an_injection_summed_in_spark_is_the_one_of_the_driver(context, tmp_path):
    made = []
    for name, rows in (("driver", 10_000), ("spark", 0)):
        one = context(inject__driver_rows=rows, inject__output=str(tmp_path / name))
        run_stage(one, InjectStage(), force=True)
        made.append(read_manifest(tmp_path / name))
    rows = [open_checkpoint(str(tmp_path / name)).tensors[EMBEDDING].values() for name in ("driver", "spark")]
    np.testing.assert_allclose(rows[1], rows[0], rtol=1e-5, atol=1e-6)
    assert made[1]["gate"]["r2"] == pytest.approx(made[0]["gate"]["r2"], rel=1e-9)


def test_where_it_is_summed_is_no_part_of_the_fingerprint(make_config):
    one, other = (make_config(inject__driver_rows=rows) for rows in (0, 5))
    assert isinstance(one, Config)
    assert one.inject.result_keys() == other.inject.result_keys()
