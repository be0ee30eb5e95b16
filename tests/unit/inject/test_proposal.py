"""Proposals: rows made on demand, and the variant that keeps what the factors cannot express."""

from __future__ import annotations

import numpy as np
import pytest

from wals_spark.checkpoints.edit import TokenFactors
from wals_spark.inject import proposal as proposals
from wals_spark.inject.proposal import TokenFrequencies, frequency_matched_permutation, propose_rows

SIZE, K, D = 600, 5, 12
PROTECTED = np.arange(4)


@pytest.fixture
def world():
    generator = np.random.default_rng(0)
    U = generator.standard_normal((SIZE, K)).astype(np.float32)
    W = generator.standard_normal((K, D))
    E = (0.3 + U @ W + 0.5 * generator.standard_normal((SIZE, D))).astype(np.float32)
    counts = (20_000 / (np.arange(SIZE) + 3)).astype(np.int64)
    return TokenFactors(U, counts), E


def propose(world, make_config, delta=None, **values):
    factors, E = world
    seen = TokenFrequencies(np.full(SIZE, 50.0), factors.counts.astype(float))
    config = make_config(inject__mode="blend", inject__checkpoint="x", **values).inject
    return propose_rows(factors, E, PROTECTED, seen, config, 1, delta)


def test_rows_are_the_blend_of_the_formula_whatever_the_chunk(world, make_config, monkeypatch):
    _, E = world
    proposal = propose(world, make_config)
    share = proposal.shares(100.0)
    ids, rows = proposal.rows(E, share)
    b = share[ids, None]
    np.testing.assert_allclose(rows, (1 - b) * E[ids] + b * proposal.predict(ids), rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(proposals, "_CHUNK", 7)
    again = propose(world, make_config).rows(E, share)
    assert np.array_equal(again[0], ids)
    np.testing.assert_allclose(again[1], rows, rtol=1e-4, atol=1e-5)


def test_span_only_moves_nothing_outside_the_span(world, make_config):
    _, E = world
    proposal = propose(world, make_config, inject__span_only=True)
    whole = propose(world, make_config)
    assert proposal.span.shape == (D, K)
    ids, rows = proposal.rows(E, proposal.full_shares())
    moved = rows - E[ids]
    away = moved - (moved @ proposal.span) @ proposal.span.T
    assert np.abs(away).max() < 1e-5
    assert np.abs(moved).max() > 0.1
    _, every = whole.rows(E, whole.full_shares())
    changed = every - E[ids]
    assert np.abs(changed - (changed @ proposal.span) @ proposal.span.T).max() > 0.1


def test_span_only_measures_errors_within_the_span(world, make_config):
    within, whole = propose(world, make_config, inject__span_only=True), propose(world, make_config)
    assert within.variances.mapping < whole.variances.mapping


def test_span_only_with_as_many_factors_as_columns_is_the_whole_row(make_config):
    generator = np.random.default_rng(1)
    U = generator.standard_normal((SIZE, D)).astype(np.float32)
    E = (U @ generator.standard_normal((D, D)) + 0.2 * generator.standard_normal((SIZE, D))).astype(np.float32)
    world = TokenFactors(U, (20_000 / (np.arange(SIZE) + 3)).astype(np.int64)), E
    within, whole = propose(world, make_config, inject__span_only=True), propose(world, make_config)
    share = np.full(SIZE, 0.5, np.float32)
    np.testing.assert_allclose(within.rows(E, share)[1], whole.rows(E, share)[1], rtol=1e-3, atol=1e-3)


def test_a_control_takes_the_proposals_of_other_tokens(world, make_config):
    _, E = world
    proposal = propose(world, make_config)
    take = frequency_matched_permutation(world[0].counts, 1)
    ids, rows = proposal.rows(E, np.ones(SIZE, np.float32), take=take)
    np.testing.assert_allclose(rows, proposal.predict(take[ids]), rtol=1e-4, atol=1e-5)


def test_a_shift_moves_the_rows_that_have_one_and_no_protected_row(world, make_config):
    _, E = world
    delta = np.zeros((SIZE, K), np.float32)
    delta[[2, 50, 70]] = 1
    proposal = propose(world, make_config, delta, inject__general_batches=["g"])
    ids, rows = proposal.rows(E, np.zeros(SIZE, np.float32), shift=0.5)
    assert ids.tolist() == [50, 70]
    expected = delta[ids] @ proposal.fit.alignment.W * proposal.shift_trust[ids, None]
    np.testing.assert_allclose(rows, E[ids] + 0.5 * expected, rtol=1e-4, atol=1e-5)
