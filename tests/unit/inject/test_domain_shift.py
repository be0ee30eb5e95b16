from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from inject_models import SIZE, UNIT
from pydantic import ValidationError

from wals_spark.config import InjectConfig
from wals_spark.factors.foldin import fold_in
from wals_spark.inject.domain_shift import fold_in_difference, read_rows
from wals_spark.inject.proposal import RowProposal, TokenFrequencies
from wals_spark.matrix.csr import build_csr
from wals_spark.objective import PRESETS


def dense(x, ids):
    row, col = np.nonzero(x[ids])
    return build_csr(row, col.astype(np.int32), x[ids][row, col].astype(np.int64), len(ids))


def test_rows_of_several_batches_are_summed_exactly(worlds):
    _, total, counts, _, _ = worlds
    ids = np.array([3, 7, 8, 31])
    found, expected = read_rows(counts.files, ids), dense(total, ids)
    for name in ("indptr", "indices", "values"):
        assert np.array_equal(getattr(found, name), getattr(expected, name))


def test_the_difference_is_that_of_two_fold_ins(worlds):
    general, total, both, before, V = worlds
    ids, objective = np.array([0, 5, 39]), PRESETS["ppmi"]
    expected = (
        fold_in(dense(total, ids), V, objective, both.marginals, unit=UNIT)[0]
        - fold_in(dense(general, ids), V, objective, before.marginals, unit=UNIT)[0]
    )
    found = fold_in_difference(ids, both, before, V, objective, UNIT)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(found).max() > 1e-3


def test_a_domain_that_adds_nothing_shifts_nothing(worlds):
    _, _, _, before, V = worlds
    assert not fold_in_difference(np.arange(SIZE), before, before, V, PRESETS["ppmi"], UNIT).any()


def test_a_shift_moves_rows_on_top_of_the_blend():
    E = np.ones((4, 3), np.float32)
    shift = np.array([[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 0]], np.float32)
    frequencies = TokenFrequencies(np.zeros(4), np.zeros(4))
    fit = SimpleNamespace(alignment=SimpleNamespace(mu_e=np.zeros(3), W=np.eye(3), predict=lambda u: u))
    trust = np.array([0, 1, 1, 0], np.float32)
    one = np.ones(4, np.float32)
    proposal = RowProposal(fit, 3 * E, one, None, frequencies, np.array([0]), 1.0, shift, trust)
    share = np.array([0, 0, 0.5, 0.5], np.float32)
    ids, rows = proposal.rows(E, share, shift=0.5)
    assert ids.tolist() == [1, 2, 3]
    assert rows.tolist() == [[1.5, 1, 1], [2, 3, 2], [2, 2, 2]]
    assert proposal.rows(E, share)[0].tolist() == [2, 3]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"shift": 0.5}, "general_batches"),
        ({"shift": "auto", "general_batches": ("a",), "combine": "sum"}, "combine must be u"),
        ({"head_bias_target": "sum"}, "general_batches"),
    ],
)
def test_what_compares_with_general_text_is_refused_without_it(values, message):
    with pytest.raises(ValidationError, match=message):
        InjectConfig(**values)
