"""The Hessian operators against the dense oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import softmax_regression as oracle

from wals_spark.inject.fit import hessian
from wals_spark.inject.fit.hessian import CellHessian, DenseHessian
from wals_spark.inject.fit.softmax_loss import OutputLayer, SoftmaxLoss
from wals_spark.mlm.hidden_states import MaskedStates


def case(seed: int, n: int, d: int, V: int, movable: np.ndarray):
    generator = np.random.default_rng(seed)
    zeros = np.zeros(n, np.float32)
    hidden = generator.standard_normal((n, d)).astype(np.float16)
    target = generator.integers(V, size=n).astype(np.int32)
    states = MaskedStates(hidden, target, zeros.astype(np.uint64), np.zeros((n, 1), np.int32), zeros, zeros)
    base = OutputLayer(*(generator.standard_normal(shape).astype(np.float32) for shape in ((V, d), (V,))))
    s = 2.0
    loss = SoftmaxLoss(states, base, movable, s)
    D = torch.from_numpy(generator.standard_normal(loss.shape).astype(np.float32))
    direction = torch.from_numpy(generator.standard_normal(loss.shape).astype(np.float32))
    x = np.concatenate([hidden.astype(np.float64), np.full((n, 1), s)], 1)
    W0 = np.concatenate([base.E, base.b[:, None] / s], 1).astype(np.float64)
    whole = np.zeros_like(W0)
    whole[movable] = D.numpy()
    entries = np.isin(np.arange(V), movable).repeat(d + 1)
    H = oracle.hessian(whole, W0, x, 0.0)[np.ix_(entries, entries)]
    wanted = (H @ direction.double().numpy().ravel()).reshape(loss.shape)
    gradient = oracle.gradient(whole, W0, x, target, 0.0)[movable]
    value = oracle.objective(whole, W0, x, target, 0.0)
    return loss, D, direction, wanted, gradient, value


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 40),
    d=st.integers(1, 6),
    V=st.integers(1, 9),
    data=st.data(),
)
def test_loss_gradient_and_both_operators_are_those_of_the_oracle(seed, n, d, V, data):
    movable = np.array(sorted(data.draw(st.sets(st.integers(0, V - 1), min_size=1))), np.int64)
    loss, D, direction, wanted, gradient, value = case(seed, n, d, V, movable)
    cells = CellHessian(loss, torch.zeros(d + 1, d + 1), threads=data.draw(st.integers(1, 3)))
    found = loss.evaluate(D, cells.add)
    cells.finish(found.mass)
    scale = 1 + np.abs(wanted).max()
    assert found.loss == pytest.approx(value, rel=1e-4, abs=1e-3)
    np.testing.assert_allclose(found.gradient.numpy(), gradient, atol=1e-4 * (1 + np.abs(gradient).max()))
    np.testing.assert_allclose(DenseHessian(loss, D).multiply(direction).numpy(), wanted, atol=1e-4 * scale)
    # what CellHessian leaves out are cells below SMALLEST_CELL: at most n V of them, each times |x|^2 |direction|
    left = n * V * hessian.SMALLEST_CELL * (d + 1) * 60
    np.testing.assert_allclose(cells.multiply(direction).numpy(), wanted, atol=1e-4 * scale + min(left, 0.05 * scale))


def test_gradients_of_batches_add_up_to_that_of_all_positions():
    loss, D, _, _, gradient, _ = case(5, 30, 4, 7, np.array([0, 2, 5]))
    parts = (np.arange(start, 30, 3) for start in range(3))
    total = sum(loss.batch_gradient(D, part) for part in parts)
    np.testing.assert_allclose(total.numpy(), gradient, rtol=1e-3, atol=1e-3)


def test_cells_that_are_left_out_count_as_a_separable_weight(monkeypatch):
    monkeypatch.setattr(hessian, "SMALLEST_CELL", 2.0)
    loss, D, direction, _, _, _ = case(3, 50, 4, 6, np.arange(6))
    gram = torch.from_numpy(loss.gram() / loss.count).float()
    cells = CellHessian(loss, gram)
    mass = loss.evaluate(D, cells.add).mass
    cells.finish(mass)
    assert cells.cells == 0
    np.testing.assert_allclose(
        cells.multiply(direction).numpy(), (mass[:, None] * direction @ gram).numpy(), rtol=1e-4, atol=1e-4
    )


def test_an_operator_that_was_not_finished_is_a_bug():
    loss, D, direction, _, _, _ = case(4, 5, 2, 3, np.arange(3))
    cells = CellHessian(loss, torch.eye(3))
    loss.evaluate(D, cells.add)
    with pytest.raises(AssertionError, match="finish first"):
        cells.multiply(direction)
