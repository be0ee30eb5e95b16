"""The objective against the formulas of docs/objectives.md, a cell at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import objective as oracle

from wals_spark.errors import ConfigError, InputError
from wals_spark.objective import PRESETS, Marginals, Objective, configuration_keys, make_objective

BOUNDED = {
    "regularization": (1e-3, 10.0),
    "regularization_exponent": (-1.0, 2.0),
    "rho": (0.0, 2.0),
    "popularity_exponent": (0.0, 2.0),
    "popularity_floor": (0.0, 2.0),
    "x_max": (0.5, 20.0),
    "weight_exponent": (0.0, 2.0),
    "context_smoothing": (0.1, 1.0),
    "alpha": (0.1, 5.0),
    "shift": (0.1, 10.0),
}


@st.composite
def objectives(draw: st.DrawFn, preset: str) -> Objective:
    """A preset with some of its keys, and its other fields that have no key, changed."""
    base = PRESETS[preset]
    keys = {
        name: draw(st.floats(*BOUNDED[name]))
        for name in configuration_keys()
        if name in BOUNDED and name in base.keys and draw(st.booleans())
    }
    if base.is_quadratic:
        fixed = ["fixed"] if preset in ("glove", "explicit") else []
        keys["bias"] = draw(st.sampled_from(["none", "free", *fixed]))
    objective = make_objective(preset, **keys)
    if draw(st.booleans()) and base.is_quadratic:
        objective = replace(
            objective,
            additive=draw(st.booleans()),
            unobserved_regularize=draw(st.booleans()),
            clipped=draw(st.booleans()),
            marginal_smoothing=draw(st.sampled_from([0.0, 1.0, 0.3])),
        )
    return objective


@st.composite
def matrices(draw: st.DrawFn) -> list[list[float]]:
    """Counts with empty rows and columns and at least one observed cell, some of them not whole."""
    rows, cols = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    value = st.sampled_from([0.0, 0.0, 0.0, 1.0, 2.0, 5.0, 0.25, 30.0])
    x = [[draw(value) for _ in range(cols)] for _ in range(rows)]
    x[draw(st.integers(0, rows - 1))][draw(st.integers(0, cols - 1))] = draw(st.sampled_from([1.0, 3.0]))
    return x


def marginals_of(objective: Objective, x: np.ndarray) -> Marginals:
    counted = (x != 0) & objective.counted(x.reshape(-1)).reshape(x.shape)
    return Marginals(x.sum(1), x.sum(0), counted.sum(1), counted.sum(0))


@pytest.mark.parametrize("preset", PRESETS)
@given(data=st.data())
@settings(max_examples=8, deadline=None, derandomize=True)
def test_every_cell_and_row_is_as_the_formulas_say(preset: str, data: st.DataObject) -> None:
    objective, counts = data.draw(objectives(preset)), data.draw(matrices())
    x = np.array(counts)
    marginals, sums = marginals_of(objective, x), oracle.sums_of(objective, counts)
    g = objective.popularity(marginals.rows, marginals.row_cells)
    h = objective.popularity(marginals.cols, marginals.col_cells)
    for each, ours, cells in ((g, sums.rows, sums.row_cells), (h, sums.cols, sums.col_cells)):
        expected = [oracle.popularity(objective, ours, cells, i) for i in range(len(ours))]
        np.testing.assert_allclose(each, expected, rtol=1e-11)

    ridge = [oracle.regularizer(objective, sums.row_cells, x.shape[1], i) for i in range(len(x))]
    np.testing.assert_allclose(objective.regularizers(marginals.row_cells, x.shape[1]), ridge, rtol=1e-13)

    totals = (marginals.total, int(marginals.row_cells.sum()))
    offsets = [oracle.offset(objective, sums, i) for i in range(len(x))]
    np.testing.assert_allclose(
        objective.offsets(marginals.rows, marginals.row_cells, totals), offsets, rtol=1e-11, atol=1e-11
    )

    row, col = np.nonzero(x)
    given_weights = np.linspace(0.0, 3.0, len(row)) if objective.weight == "column" else None
    m, d = objective.cells(x[row, col], row, col, marginals, g, h, given_weights)
    for at, (i, j) in enumerate(zip(row.tolist(), col.tolist(), strict=True)):
        weight = None if given_weights is None else float(given_weights[at])
        expected_m, expected_d = oracle.cell(objective, counts, i, j, weight)
        assert m[at] == pytest.approx(expected_m, rel=1e-11, abs=1e-11)
        # Where a target is 0 but for rounding, its sign decides whether the cell is unobserved.
        if not objective.clipped_are_unobserved or abs(oracle.target(objective, counts[i][j], sums, i, j)) > 1e-9:
            assert d[at] == pytest.approx(expected_d, rel=1e-9, abs=1e-11)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_symmetric_matrix_gives_a_symmetric_target_where_the_objective_says_so(preset: str) -> None:
    objective = PRESETS[preset]
    x = np.array([[2.0, 5.0, 1.0], [5.0, 4.0, 7.0], [1.0, 7.0, 3.0]])
    row, col = np.nonzero(x)
    marginals = marginals_of(objective, x)
    target = objective.target_function(x[row, col], row, col, marginals).reshape(x.shape)
    assert np.allclose(target, target.T, rtol=1e-13) == objective.symmetric


def test_popularity_of_new_rows_is_relative_to_a_given_mean() -> None:
    objective = replace(PRESETS["ppmi"], popularity_exponent=0.5)
    g = objective.popularity(np.array([4.0, 9.0]), np.array([1, 1]), log_mean=0.0)
    np.testing.assert_allclose(g, [2.0, 3.0], rtol=1e-14)


def test_a_row_without_a_power_is_refused() -> None:
    with pytest.raises(InputError, match="1 rows with cells have a sum of 0 or less"):
        PRESETS["ppmi"].popularity(np.array([1.0, -1.0]), np.array([1, 1]))


def test_negative_preferences_do_not_count() -> None:
    assert PRESETS["implicit"].counted(np.array([-1.0, 0.0, 2.0])).tolist() == [False, False, True]
    assert PRESETS["explicit"].counted(np.array([-1.0, 0.0, 2.0])).all()


@pytest.mark.parametrize("field", ["target", "weight", "bias", "prediction", "unobserved"])
def test_an_unknown_name_is_refused_with_the_known_ones(field: str) -> None:
    with pytest.raises(ConfigError, match="objective 'ppmi': found 'other', expected one of"):
        replace(PRESETS["ppmi"], **{field: "other"})


def test_cells_of_custom_without_weights_are_refused():
    with pytest.raises(InputError, match=r"takes the weight of every cell as it is given, and 3 cells have none"):
        PRESETS["custom"].weight_function(np.ones(3))
