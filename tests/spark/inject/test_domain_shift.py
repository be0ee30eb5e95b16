from __future__ import annotations

import numpy as np
import pytest
from inject_models import UNIT

from wals_spark.inject.domain_shift import fold_in_difference, fold_in_difference_in_spark
from wals_spark.objective import PRESETS

pytestmark = pytest.mark.spark


def test_in_spark_it_is_what_one_process_computes(spark, worlds):
    _, _, both, before, V = worlds
    ids = np.array([1, 2, 5, 17, 30, 38])
    found = fold_in_difference_in_spark(spark, ids, both, before, V, PRESETS["ppmi"], UNIT, rows_per_task=2)
    np.testing.assert_allclose(found[ids], fold_in_difference(ids, both, before, V, PRESETS["ppmi"], UNIT), rtol=1e-6)
    assert not np.delete(found, ids, axis=0).any()
