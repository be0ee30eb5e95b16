from __future__ import annotations

import numpy as np
import pytest
from inject_models import alignment_problem

from wals_spark.errors import InputError
from wals_spark.inject.gate import fit_and_gate


def test_the_gate_passes_for_a_real_relation():
    U, E, counts = alignment_problem()
    fit = fit_and_gate(U, E, counts, np.arange(600), folds=5, half=100, seed=1)
    assert fit.gate.passed
    assert fit.gate.r2["factors"] > 0.9
    assert fit.gate.r2["permuted"] < 0.1
    assert fit.gate.low <= fit.gate.gain <= fit.gate.high
    assert sum(row["tokens"] for row in fit.gate.deciles) == 600


@pytest.mark.parametrize("seed", range(5))
def test_the_gate_refuses_unrelated_factors(seed):
    _, E, counts = alignment_problem()
    U = np.random.default_rng(seed + 50).standard_normal((600, 6)).astype(np.float32)
    fit = fit_and_gate(U, E, counts, np.arange(600), folds=5, half=100, seed=seed)
    assert not fit.gate.passed
    assert "not above" in fit.gate.reason


def test_the_gate_refuses_factors_that_know_only_frequency():
    generator = np.random.default_rng(0)
    counts = generator.integers(1, 100_000, 800)
    logs = np.log(counts)[:, None]
    U = (logs @ generator.standard_normal((1, 5))).astype(np.float32)
    E = (logs @ generator.standard_normal((1, 7)) + generator.standard_normal((800, 7))).astype(np.float32)
    fit = fit_and_gate(U, E, counts, np.arange(800), folds=5, half=100, seed=1)
    assert fit.gate.r2["factors"] > 0.3
    assert not fit.gate.passed


def test_the_gate_refuses_an_embedding_of_equal_rows():
    U, _, counts = alignment_problem()
    fit = fit_and_gate(U, np.ones((600, 4), np.float32), counts, np.arange(600), folds=5, half=100, seed=1)
    assert not fit.gate.passed


def test_too_few_anchors_are_an_input_error():
    U, E, counts = alignment_problem()
    with pytest.raises(InputError, match="expected at least 50"):
        fit_and_gate(U, E, counts, np.arange(49), folds=5, half=100, seed=1)


@pytest.mark.parametrize("method", ["ridge", "procrustes"])
def test_a_whitened_map_applies_to_the_factors_as_they_are(method):
    U, E, counts = alignment_problem(noise=0.01)
    anchors = np.arange(600)
    fit = fit_and_gate(U, E, counts, anchors, folds=5, half=100, seed=1, method=method, whiten=True)
    square = ((E - fit.alignment.predict(U)) ** 2).sum(axis=1)
    assert fit.held_out_error.sum() == pytest.approx(square.sum(), rel=0.05)
    assert fit.gate.passed
