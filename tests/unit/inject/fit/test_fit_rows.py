"""Fits of rows against a dense float64 Newton method, on random and degenerate input."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import softmax_regression as oracle
from thread_ranks import run_threads

from wals_spark.cluster.process_group import LocalGroup
from wals_spark.errors import InputError
from wals_spark.inject.fit.fit_rows import FitSettings, FittedRows, FitTexts, FitTokens, fit_rows, unit_factors
from wals_spark.inject.fit.softmax_loss import OutputLayer
from wals_spark.mlm.hidden_states import MaskedStates

NOTHING = np.zeros(0, np.int64)


def random_states(generator: np.random.Generator, n: int, d: int, V: int, documents: int = 5) -> MaskedStates:
    """States of n positions; targets are skewed, as words are."""
    target = np.minimum(generator.geometric(0.3, n) - 1, V - 1).astype(np.int32)
    hidden = generator.standard_normal((n, d)).astype(np.float16)
    document = generator.integers(documents, size=n).astype(np.uint64)
    zeros = np.zeros(n, np.float32)
    return MaskedStates(hidden, target, document, np.zeros((n, 2), np.int32), zeros, zeros)


def random_base(generator: np.random.Generator, V: int, d: int) -> OutputLayer:
    """A decoder."""
    return OutputLayer(
        generator.standard_normal((V, d)).astype(np.float32), generator.standard_normal(V).astype(np.float32)
    )


def decrease(
    found: FittedRows, states: MaskedStates, base: OutputLayer, ridge: float, ridge_bias: float
) -> tuple[float, float]:
    """How far J fell, and how far it falls at its minimum; both float64, in the oracle's own coordinates."""
    s = (ridge / ridge_bias) ** 0.5
    x = np.concatenate([states.hidden.astype(np.float64), np.full((len(states), 1), s)], 1)
    W0 = np.concatenate([base.E, base.b[:, None] / s], 1).astype(np.float64)
    D = np.zeros_like(W0)
    D[found.ids] = np.concatenate([found.rows, found.bias[:, None] / s], 1)
    movable = np.unique(states.target)
    best = oracle.minimise(W0, x, states.target, ridge, movable)
    at = [oracle.objective(each, W0, x, states.target, ridge) for each in (np.zeros_like(W0), D, best)]
    return at[0] - at[1], at[0] - at[2]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 60),
    d=st.integers(1, 5),
    V=st.integers(2, 8),
    ridge=st.sampled_from([0.05, 1.0, 30.0]),
    ridge_bias=st.sampled_from([0.01, 1.0]),
)
def test_the_decrease_is_that_of_a_dense_newton_method(
    seed: int, n: int, d: int, V: int, ridge: float, ridge_bias: float
) -> None:
    generator = np.random.default_rng(seed)
    states, base = random_states(generator, n, d, V), random_base(generator, V, d)
    texts = FitTexts(states, states)
    wanted = FitSettings(lambda_rows=ridge, lambda_bias=ridge_bias, tolerance=1e-4, iterations=60)
    found = fit_rows(texts, base, FitTokens(NOTHING), wanted, LocalGroup())
    got, best = decrease(found, states, base, ridge, ridge_bias)
    assert got >= best * (1 - 1e-3) - 1e-3 * (1 + n) * 1e-2
    assert got <= best + 1e-3


def test_values_never_rise() -> None:
    generator = np.random.default_rng(1)
    states, base = random_states(generator, 300, 8, 20), random_base(generator, 20, 8)
    found = fit_rows(FitTexts(states, states), base, FitTokens(NOTHING), FitSettings(lambda_rows=0.5), LocalGroup())
    values = found.facts["objective"]
    assert len(values) > 2
    assert all(later <= earlier for earlier, later in pairwise(values))


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("rows", ["free", "factors", "both"])
def test_the_result_does_not_depend_on_the_number_of_ranks(ranks: int, rows: str) -> None:
    generator = np.random.default_rng(2)
    training, validation = random_states(generator, 120, 6, 15), random_states(generator, 50, 6, 15)
    base = random_base(generator, 15, 6)
    tokens = FitTokens(np.array([3]), generator.standard_normal((15, 4)).astype(np.float32), np.full(15, 100))
    wanted = FitSettings(rows=rows, tolerance=1e-6, lambda_rows=1.0)  # type: ignore[arg-type]
    one = fit_rows(FitTexts(training, validation, validation), base, tokens, wanted, LocalGroup())

    def program(group):  # type: ignore[no-untyped-def]
        def share(states: MaskedStates) -> MaskedStates:
            return states.take(np.arange(group.rank, len(states), group.size))

        texts = FitTexts(share(training), share(validation), share(validation))
        return fit_rows(texts, base, tokens, wanted, group)

    for other in run_threads(ranks, program):
        np.testing.assert_array_equal(other.ids, one.ids)
        np.testing.assert_allclose(other.rows, one.rows, atol=2e-3)
        np.testing.assert_allclose(other.bias, one.bias, atol=2e-3)
        gain, before = other.facts["held_out"]["gain"]["value"], one.facts["held_out"]["gain"]["value"]
        assert gain == pytest.approx(before, abs=1e-3)


def test_protected_tokens_and_tokens_without_targets_stay() -> None:
    generator = np.random.default_rng(3)
    states, base = random_states(generator, 200, 4, 30), random_base(generator, 30, 4)
    found = fit_rows(
        FitTexts(states, states), base, FitTokens(np.array([0, 2])), FitSettings(lambda_rows=1.0), LocalGroup()
    )
    assert set(found.ids) == set(np.unique(states.target)) - {0, 2}


def test_with_factors_tokens_counted_often_move_without_targets() -> None:
    generator = np.random.default_rng(4)
    states, base = random_states(generator, 200, 4, 30), random_base(generator, 30, 4)
    counts = np.zeros(30, np.int64)
    counts[[25, 29]] = 50, 10
    tokens = FitTokens(NOTHING, generator.standard_normal((30, 3)).astype(np.float32), counts)
    found = fit_rows(FitTexts(states, states), base, tokens, FitSettings(rows="both", lambda_rows=1.0), LocalGroup())
    assert 25 in found.ids
    assert 29 not in found.ids
    assert np.abs(found.rows[found.ids == 25]).max() > 0


def test_rows_of_factors_alone_lie_in_their_span() -> None:
    generator = np.random.default_rng(5)
    states, base = random_states(generator, 200, 6, 12), random_base(generator, 12, 6)
    F = generator.standard_normal((12, 2)).astype(np.float32)
    tokens = FitTokens(NOTHING, F, np.full(12, 99))
    found = fit_rows(FitTexts(states, states), base, tokens, FitSettings(rows="factors", lambda_rows=1.0), LocalGroup())
    F = F[found.ids]
    left = found.rows - F @ np.linalg.lstsq(F, found.rows, rcond=None)[0]
    assert np.abs(left).max() < 1e-4
    assert np.linalg.matrix_rank(found.rows, tol=1e-3) == 2


def test_the_penalty_is_chosen_on_held_out_documents() -> None:
    generator = np.random.default_rng(6)
    d, V = 6, 40
    base = random_base(generator, V, d)
    true = base.E + 1.5 * generator.standard_normal((V, d)).astype(np.float32)

    def drawn(n: int) -> MaskedStates:
        states = random_states(generator, n, d, V)
        logits = states.hidden.astype(np.float32) @ true.T
        target = (logits + generator.gumbel(size=logits.shape)).argmax(1).astype(np.int32)
        return replace(states, target=target)

    found = fit_rows(FitTexts(drawn(2000), drawn(500)), base, FitTokens(NOTHING), FitSettings(), LocalGroup())
    assert found.facts["held_out"]["gain"]["low"] > 0.1
    tried = [entry["lambda_rows"] for entry in found.facts["tried"]]
    assert found.facts["lambda_rows"] in tried
    assert tried == sorted(tried, reverse=True)


def test_nothing_to_choose_on_is_refused() -> None:
    generator = np.random.default_rng(7)
    states, base = random_states(generator, 50, 3, 9), random_base(generator, 9, 3)
    with pytest.raises(InputError, match=r"states\.validation_fraction is 0"):
        fit_rows(FitTexts(states, states.take(slice(0))), base, FitTokens(NOTHING), FitSettings(), LocalGroup())


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_states_that_are_not_finite_are_refused(wrong: float) -> None:
    generator = np.random.default_rng(8)
    states, base = random_states(generator, 50, 3, 9), random_base(generator, 9, 3)
    states.hidden[7, 1] = wrong
    with pytest.raises(InputError, match="states"):
        fit_rows(FitTexts(states, states), base, FitTokens(NOTHING), FitSettings(lambda_rows=1.0), LocalGroup())


def test_targets_of_another_tokenizer_are_refused() -> None:
    generator = np.random.default_rng(9)
    states, base = random_states(generator, 50, 3, 30), random_base(generator, 4, 3)
    with pytest.raises(InputError, match="another tokenizer"):
        fit_rows(FitTexts(states, states), base, FitTokens(NOTHING), FitSettings(lambda_rows=1.0), LocalGroup())


def test_states_of_another_width_are_refused() -> None:
    generator = np.random.default_rng(10)
    states, base = random_states(generator, 50, 3, 9), random_base(generator, 9, 4)
    with pytest.raises(InputError, match="another model"):
        fit_rows(FitTexts(states, states), base, FitTokens(NOTHING), FitSettings(lambda_rows=1.0), LocalGroup())


def test_factors_have_a_mean_length_of_one() -> None:
    generator = np.random.default_rng(11)
    F = generator.standard_normal((10, 3)).astype(np.float32)
    F[4] = 0
    scaled = unit_factors(FitTokens(NOTHING, F, np.ones(10, np.int64)), np.arange(10))
    lengths = np.linalg.norm(scaled, axis=1)
    assert lengths[lengths > 0].mean() == pytest.approx(1.0, rel=1e-6)
    assert lengths[4] == 0


def test_the_same_input_gives_the_same_bits() -> None:
    generator = np.random.default_rng(12)
    states, base = random_states(generator, 300, 5, 12), random_base(generator, 12, 5)
    torch.manual_seed(0)
    first, second = (
        fit_rows(FitTexts(states, states), base, FitTokens(NOTHING), FitSettings(), LocalGroup()) for _ in range(2)
    )
    np.testing.assert_array_equal(first.rows, second.rows)
    np.testing.assert_array_equal(first.bias, second.bias)
