"""The pyspark.ml estimator beside MLlib's ALS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wals_spark.errors import ConfigError, InputError

pytestmark = pytest.mark.spark
USERS, ITEMS = 30, 20


@pytest.fixture(scope="module")
def ratings(spark: Any) -> Any:
    """Ratings of users 100.. and items 7, 17, ...: ids with gaps; user 100 has rated item 7 twice."""
    rng = np.random.default_rng(0)
    rows = [
        (100 + u, 7 + 10 * i, float(rng.integers(1, 6)))
        for u in range(USERS)
        for i in range(ITEMS)
        if rng.random() < 0.4 or i == u % ITEMS
    ]
    rows.append((100, 7, 2.0))
    return spark.createDataFrame(rows, "user int, item int, rating double").cache()


@pytest.fixture(scope="module")
def implicit_model(ratings: Any) -> Any:
    from wals_spark import WALS

    return WALS(rank=5, maxIter=8, regParam=0.05, alpha=2.0, implicitPrefs=True, seed=3, numWorkers=1).fit(ratings)


def vectors(frame: Any) -> dict[int, np.ndarray]:
    return {row["id"]: np.array(row["features"], np.float64) for row in frame.collect()}


def objective(ratings: Any, users: dict, items: dict, regularization: float, alpha: float | None) -> float:
    """MLlib's objective in float64; alpha None = explicit. Written from its formula, not from our code."""
    rows = [(row["user"], row["item"], row["rating"]) for row in ratings.collect()]
    degree_u = {u: sum(1 for a, _, r in rows if a == u and (alpha is None or r > 0)) for u in users}
    degree_i = {i: sum(1 for _, b, r in rows if b == i and (alpha is None or r > 0)) for i in items}
    total = regularization * sum(degree_u[u] * x @ x for u, x in users.items())
    total += regularization * sum(degree_i[i] * x @ x for i, x in items.items())
    if alpha is None:
        return total + sum((r - users[u] @ items[i]) ** 2 for u, i, r in rows)
    # sum over all cells of s^2, then observed cells add c (p - s)^2 - s^2; a repeated rating adds its own.
    u, v = np.array(list(users.values())), np.array(list(items.values()))
    total += float(((u @ v.T) ** 2).sum())
    for a, b, r in rows:
        s = users[a] @ items[b]
        confidence = 1 + alpha * abs(r)
        total += confidence * ((r > 0) - s) ** 2 - s**2
    return float(total)


@pytest.mark.parametrize("implicit", [False, True], ids=["explicit", "implicit"])
def test_the_objective_is_at_or_below_that_of_mllib(ratings: Any, implicit_model: Any, implicit: bool) -> None:
    from pyspark.ml.recommendation import ALS

    from wals_spark import WALS

    parameters: dict[str, Any] = {"rank": 5, "maxIter": 8, "regParam": 0.05, "implicitPrefs": implicit, "seed": 3}
    parameters |= {"alpha": 2.0} if implicit else {}
    single = ratings.dropDuplicates(["user", "item"])
    theirs = ALS(**parameters).fit(single)
    ours = WALS(**parameters, numWorkers=1).fit(single)
    alpha = 2.0 if implicit else None
    losses = [objective(single, vectors(m.userFactors), vectors(m.itemFactors), 0.05, alpha) for m in (ours, theirs)]
    assert losses[0] <= losses[1] * 1.02
    assert ours.losses[-1] == pytest.approx(losses[0], rel=1e-4)


def test_repeated_ratings_are_separate_observations(ratings: Any, implicit_model: Any) -> None:
    losses = objective(ratings, vectors(implicit_model.userFactors), vectors(implicit_model.itemFactors), 0.05, 2.0)
    assert implicit_model.losses[-1] == pytest.approx(losses, rel=1e-4)


def test_predictions_are_products_and_unknown_ids_are_cold(spark: Any, ratings: Any, implicit_model: Any) -> None:
    users, items = vectors(implicit_model.userFactors), vectors(implicit_model.itemFactors)
    pairs = spark.createDataFrame([(100, 7), (101, 17), (999, 7), (100, 8)], "user int, item int")
    rows = implicit_model.transform(pairs).collect()
    for row in rows:
        if row["user"] in users and row["item"] in items:
            assert row["prediction"] == pytest.approx(users[row["user"]] @ items[row["item"]], rel=1e-5)
        else:
            assert np.isnan(row["prediction"])
    assert implicit_model.copy().setColdStartStrategy("drop").transform(pairs).count() == 2


def test_recommendations_are_the_largest_products(spark: Any, implicit_model: Any) -> None:
    users, items = vectors(implicit_model.userFactors), vectors(implicit_model.itemFactors)
    rows = implicit_model.recommendForAllUsers(4).collect()
    assert len(rows) == USERS
    for row in rows:
        scores = {item: float(users[row["user"]] @ x) for item, x in items.items()}
        expected = sorted(scores.values(), reverse=True)[:4]
        assert [pair["rating"] for pair in row["recommendations"]] == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert all(
            scores[pair["item"]] == pytest.approx(pair["rating"], rel=1e-4, abs=1e-6) for pair in row["recommendations"]
        )
    assert implicit_model.recommendForAllItems(3).count() == ITEMS
    subset = spark.createDataFrame([(100,), (100,), (555,)], "user int")
    assert [row["user"] for row in implicit_model.recommendForUserSubset(subset, 2).collect()] == [100]


def test_folded_in_rows_of_the_training_get_the_vectors_of_one_more_half_step(spark: Any, ratings: Any) -> None:
    from wals_spark import WALS

    model = WALS(rank=4, maxIter=40, regParam=0.1, alpha=2.0, implicitPrefs=True, numWorkers=1).fit(ratings)
    for fold_in, factors, own in (
        (model.foldInUsers, model.userFactors, "user"),
        (model.foldInItems, model.itemFactors, "item"),
    ):
        trained, folded = vectors(factors), vectors(fold_in(ratings))
        assert sorted(folded) == sorted(row[own] for row in ratings.select(own).distinct().collect())
        assert max(np.abs(folded[x] - trained[x]).max() for x in folded) < 2e-2


@pytest.mark.parametrize(("bias", "duplicates"), [("fixed", "sum"), ("free", "keep")])
def test_folded_in_rows_have_the_biases_of_the_training(
    tmp_path: Path, ratings: Any, bias: str, duplicates: str
) -> None:
    """Also after a save, and in the types of the training."""
    from wals_spark import WALS, WALSModel

    wals = WALS(
        rank=2, maxIter=60, regParam=0.3, numWorkers=1, objective="explicit", objectiveParams={"bias": bias},
        duplicates=duplicates, precision="float64",
    )  # fmt: skip
    wals.fit(ratings.selectExpr("cast(user as smallint) as user", "item", "rating")).save(str(tmp_path / "model"))
    model = WALSModel.load(str(tmp_path / "model"))
    for side, folded in (("row", model.foldInUsers(ratings)), ("col", model.foldInItems(ratings))):
        assert folded.dtypes[1:] == [("features", "array<float>"), ("bias", "float")]
        assert dict(folded.dtypes)["id"] == ("smallint" if side == "row" else "int")
        trained = {row["id"]: row for row in model.side_factors(side).collect()}
        for row in folded.collect():
            assert row["bias"] == pytest.approx(trained[row["id"]]["bias"], abs=1e-2 if bias == "free" else 1e-5)
            assert row["features"] == pytest.approx(trained[row["id"]]["features"], abs=2e-2)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1 as user, 7 as item, cast(null as double) as rating", "rating holds null"),
        ("1 as user, 7 as item, double('nan') as rating", "rating holds NaN"),
        ("1 as user, 7 as item, '1' as rating", "column rating is string, expected numbers"),
        ("1.5 as user, 7 as item, 1.0 as rating", "user holds 1.5, expected whole numbers"),
        ("10000000000 as user, 7 as item, 1.0 as rating", "user holds 10000000000, expected int"),
        ("1 as user, 7 as item", "no column rating"),
    ],
    ids=["null", "nan", "string", "fraction", "wide", "missing"],
)
def test_bad_values_to_fold_in_are_named(spark: Any, implicit_model: Any, row: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        implicit_model.foldInUsers(spark.sql(f"select {row}"))


def test_repeated_pairs_to_fold_in_are_refused_where_the_training_did(ratings: Any) -> None:
    from wals_spark import WALS

    single = ratings.dropDuplicates(["user", "item"])
    model = WALS(rank=2, maxIter=1, duplicates="refuse", numWorkers=1).fit(single)
    with pytest.raises(InputError, match="item 7 and user 100 have 2 ratings"):
        model.foldInItems(ratings)
    assert model.foldInItems(single).count() == ITEMS


def test_predictions_of_squared_norms_are_those_that_were_trained(tmp_path: Path, ratings: Any) -> None:
    from wals_spark import WALS, WALSModel

    single = ratings.dropDuplicates(["user", "item"])
    trained = WALS(rank=3, maxIter=5, regParam=0.01, objective="squared_norm", numWorkers=1, precision="float64").fit(
        single
    )
    trained.save(str(tmp_path / "model"))
    model = WALSModel.load(str(tmp_path / "model"))
    users, items, z = vectors(model.userFactors), vectors(model.itemFactors), model.training_facts["constant"]
    weight = {row["rating"]: min(row["rating"] / 100, 1) ** 0.75 for row in single.collect()}
    loss = 0.01 * sum(float(x @ x) for side in (users, items) for x in side.values())
    for row in model.transform(single).collect():
        u, v = users[row["user"]], items[row["item"]]
        assert row["prediction"] == pytest.approx(z + ((u + v) ** 2).sum(), rel=1e-5, abs=1e-5)
        loss += weight[row["rating"]] * (np.log(row["rating"]) - row["prediction"]) ** 2
    assert loss == pytest.approx(model.losses[-1], rel=1e-4)
    for row in model.recommendForAllUsers(4).collect():
        scores = {item: float(z + ((users[row["user"]] + x) ** 2).sum()) for item, x in items.items()}
        expected = sorted(scores.values(), reverse=True)[:4]
        assert [pair["rating"] for pair in row["recommendations"]] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    with pytest.raises(InputError, match="fold-in with the objective squared_norm is not available"):
        model.foldInUsers(single)


def test_a_saved_model_loads_as_it_was(tmp_path: Path, implicit_model: Any) -> None:
    from wals_spark import WALSModel

    path = str(tmp_path / "model")
    implicit_model.save(path)
    loaded = WALSModel.load(path)
    assert loaded.rank == 5
    assert loaded.losses == implicit_model.losses
    assert loaded.getUserCol() == "user"
    before, after = vectors(implicit_model.itemFactors), vectors(loaded.itemFactors)
    assert all(np.array_equal(before[item], after[item]) for item in before)


def test_a_warm_start_begins_where_the_model_ended(ratings: Any, implicit_model: Any) -> None:
    from wals_spark import WALS

    warm = WALS(rank=5, maxIter=1, regParam=0.05, alpha=2.0, implicitPrefs=True, numWorkers=1).warmStart(implicit_model)
    assert warm.fit(ratings).losses[0] <= implicit_model.losses[-1] * (1 + 1e-6)


def test_a_saved_estimator_keeps_the_model_that_it_starts_from(tmp_path: Path, implicit_model: Any) -> None:
    from wals_spark import WALS

    path = str(tmp_path / "estimator")
    wals = WALS(rank=5, maxIter=1).warmStart(implicit_model)
    wals.save(path)
    loaded = WALS.load(path)
    assert (loaded.uid, loaded.getRank()) == (wals.uid, 5)
    loaded.setMaxIter(2).write().overwrite().save(path)
    again = WALS.load(path)
    assert again.getMaxIter() == 2
    before, after = vectors(implicit_model.itemFactors), vectors(again.initialModel.itemFactors)
    assert all(np.array_equal(before[item], after[item]) for item in before)
    again.warmStart(None).write().overwrite().save(path)
    assert WALS.load(path).initialModel is None


def test_it_works_in_a_pipeline_and_a_cross_validator(ratings: Any) -> None:
    from pyspark.ml import Pipeline
    from pyspark.ml.evaluation import RegressionEvaluator
    from pyspark.ml.tuning import CrossValidator, ParamGridBuilder

    from wals_spark import WALS

    wals = WALS(rank=2, maxIter=2, coldStartStrategy="drop", numWorkers=1)
    grid = ParamGridBuilder().addGrid(wals.regParam, [0.1, 100.0]).build()
    evaluator = RegressionEvaluator(metricName="rmse", labelCol="rating", predictionCol="prediction")
    fitted = CrossValidator(
        estimator=Pipeline(stages=[wals]), estimatorParamMaps=grid, evaluator=evaluator, numFolds=2, seed=1
    ).fit(ratings)
    assert fitted.avgMetrics[0] < fitted.avgMetrics[1]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"nonnegative": True, "objective": "explicit", "objectiveParams": {"bias": "free"}},
            "without negative factors",
        ),
        ({"rank": 0}, "rank is 0, expected 1 or more"),
        ({"regParam": -0.1}, "regParam is -0.1, expected 0.0 or more"),
        ({"alpha": float("nan")}, "alpha is nan, expected 0.0 or more"),
        ({"numItemBlocks": 0}, "numItemBlocks is 0, expected 1 or more"),
        ({"checkpointInterval": 0}, "checkpointInterval is 0, expected -1, or 1 or more"),
        ({"intermediateStorageLevel": "NONE"}, "intermediateStorageLevel is 'NONE', expected one of DISK_ONLY"),
        ({"finalStorageLevel": "TAPE"}, "finalStorageLevel is 'TAPE', expected one of NONE"),
        ({"coldStartStrategy": "x"}, "coldStartStrategy is 'x', expected one of nan, drop"),
        ({"ratingCol": "stars"}, "no column stars"),
        ({"duplicates": "refuse"}, "cells of the matrix occur more than once"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_work_is_refused(ratings: Any, parameters: dict[str, Any], message: str) -> None:
    from wals_spark import WALS

    with pytest.raises((ConfigError, InputError), match=message):
        WALS(**{"rank": 3, "numWorkers": 1, **parameters}).fit(ratings)


@pytest.mark.parametrize(
    ("row", "message"),
    [((1.5, 1, 1.0), "user holds 1.5, expected whole numbers"), ((1.0, 1, float("nan")), "rating holds NaN")],
    ids=["fraction", "nan"],
)
def test_bad_values_are_named(spark: Any, row: tuple[Any, ...], message: str) -> None:
    from wals_spark import WALS

    frame = spark.createDataFrame([row], "user double, item int, rating double")
    with pytest.raises(InputError, match=message):
        WALS(rank=1, numWorkers=1).fit(frame)


@pytest.mark.parametrize("kind", ["string", "boolean"])
def test_ratings_that_are_no_numbers_are_refused(spark: Any, kind: str) -> None:
    from wals_spark import WALS

    frame = spark.sql(f"select 1 as user, 2 as item, cast(1 as {kind}) as rating")
    with pytest.raises(InputError, match=f"column rating is {kind}, expected numbers"):
        WALS(rank=1, numWorkers=1).fit(frame)


@pytest.mark.parametrize("value", ["nan", "inf", "1e19", "null", "2.5"])
def test_ids_that_are_no_whole_numbers_are_named(spark: Any, value: str) -> None:
    from wals_spark import WALS

    literal = "null" if value == "null" else f"'{value}'"
    frame = spark.sql(f"select cast({literal} as double) as user, 2 as item, 1.0 as rating")
    with pytest.raises(InputError, match=r"user holds .*, expected whole numbers of 64 bits"):
        WALS(rank=1, numWorkers=1).fit(frame)


def test_every_parameter_has_a_setter_and_a_getter_as_in_mllib(spark: Any) -> None:
    from pyspark.ml.recommendation import ALS, ALSModel

    from wals_spark import WALS, WALSModel

    def accessors(kind: type) -> set[str]:
        return {name for name in dir(kind) if name.startswith(("set", "get"))}

    assert accessors(ALS) <= accessors(WALS)
    assert accessors(ALSModel) <= accessors(WALSModel)
    als = WALS().setRank(7).setMaxIter(3).setRegParam(0.2).setNumBlocks(4).setNonnegative(False).setSeed(5)
    found = (als.getRank(), als.getMaxIter(), als.getRegParam(), als.getNumUserBlocks(), als.getSeed())
    assert found == (7, 3, 0.2, 4, 5)
    assert WALS(seed=None).getSeed() == 0


def test_a_rank_above_both_sides_is_solved(ratings: Any) -> None:
    from wals_spark import WALS

    few = ratings.where("user < 104 and item < 37").dropDuplicates(["user", "item"])
    model = WALS(rank=21, maxIter=10, regParam=0.05, numWorkers=1).fit(few)
    loss = objective(few, vectors(model.userFactors), vectors(model.itemFactors), 0.05, None)
    assert model.losses[-1] == pytest.approx(loss, rel=1e-4)


def test_ratings_without_regularisation_are_fitted_or_the_row_is_named(spark: Any) -> None:
    from wals_spark import WALS

    cells = [(u, i, float(u + 1) * (i + 2) + (u % 2) * i) for u in range(8) for i in range(6)]
    frame = spark.createDataFrame(cells, "user int, item int, rating double")
    model = WALS(rank=2, maxIter=10, regParam=0.0, numWorkers=1, precision="float64").fit(frame)
    for row in model.transform(frame).collect():
        assert row["prediction"] == pytest.approx(row["rating"], rel=1e-3)
    short = frame.union(spark.createDataFrame([(90, 1, 1.0)], frame.schema))
    with pytest.raises(
        InputError, match=r"1 users have no unique solution \(ids 90\): .* raise regParam .*, or lower rank"
    ):
        WALS(rank=2, maxIter=2, regParam=0.0, numWorkers=1).fit(short)


@pytest.mark.parametrize("implicit", [False, True], ids=["explicit", "implicit"])
def test_nonnegative_factors_are_the_constrained_minima(ratings: Any, implicit: bool) -> None:
    """The users, solved last as MLlib does, from the items; the loss is that of MLlib's objective."""
    from scipy.optimize import nnls

    from wals_spark import WALS

    single = ratings.dropDuplicates(["user", "item"])
    model = WALS(
        rank=4, maxIter=8, regParam=0.05, implicitPrefs=implicit, alpha=2.0, nonnegative=True, numWorkers=1
    ).fit(single)
    users, items = vectors(model.userFactors), vectors(model.itemFactors)
    loss = objective(single, users, items, 0.05, 2.0 if implicit else None)
    assert model.losses[-1] == pytest.approx(loss, rel=1e-4)
    rows = [(row["user"], row["item"], row["rating"]) for row in single.collect()]
    for user, found in users.items():
        rated = {i: r for u, i, r in rows if u == user}
        weight = {i: 1 + 2.0 * rated.get(i, 0.0) for i in items} if implicit else dict.fromkeys(rated, 1.0)
        root = np.array([np.sqrt(w) for w in weight.values()])
        target = np.array([(1.0 if implicit else rated[i]) if i in rated else 0.0 for i in weight])
        ridge = np.sqrt(0.05 * len(rated)) * np.eye(4)
        left = np.vstack([root[:, None] * np.array([items[i] for i in weight]), ridge])
        expected, _ = nnls(left, np.append(root * target, np.zeros(4)))
        assert np.allclose(found, expected, rtol=1e-3, atol=1e-4 * expected.max())


def test_no_sweep_gives_starting_factors_of_both_sides(ratings: Any) -> None:
    from wals_spark import WALS

    model = WALS(rank=3, maxIter=0, numWorkers=1).fit(ratings)
    assert model.losses == []
    for factors, count in ((model.userFactors, USERS), (model.itemFactors, ITEMS)):
        assert [np.linalg.norm(x) for x in vectors(factors).values()] == pytest.approx([1.0] * count, rel=1e-5)


def test_ids_come_out_in_the_types_that_they_came_in(ratings: Any) -> None:
    from wals_spark import WALS

    wals = WALS(rank=2, maxIter=1, numWorkers=1)
    model = wals.fit(ratings.selectExpr("cast(user as smallint) as user", "cast(item as double) as item", "rating"))
    assert model.uid == wals.uid
    assert dict(model.userFactors.dtypes)["id"] == "smallint"
    assert dict(model.itemFactors.dtypes)["id"] == "double"
    kind = "array<struct<item:double,rating:float>>"
    assert model.recommendForAllUsers(2).dtypes == [("user", "smallint"), ("recommendations", kind)]


def test_extra_columns_may_have_any_names(spark: Any, implicit_model: Any) -> None:
    frame = spark.sql("select 100 as user, 7 as item, 1 as `a.b`, 2 as _user, 3 as _u, 4 as features, 5 as id, 6 as id")
    predicted = implicit_model.transform(frame)
    assert predicted.columns == [*frame.columns, "prediction"]
    row = predicted.collect()[0]
    assert tuple(row)[:8] == (100, 7, 1, 2, 3, 4, 5, 6)
    users, items = vectors(implicit_model.userFactors), vectors(implicit_model.itemFactors)
    assert row["prediction"] == pytest.approx(users[100] @ items[7], rel=1e-5)


def test_columns_that_clash_are_refused(ratings: Any, implicit_model: Any) -> None:
    from pyspark.sql import functions as F

    with pytest.raises(InputError, match="the data has a column prediction already"):
        implicit_model.transform(ratings.withColumn("prediction", F.lit(0.0)))
    with pytest.raises(InputError, match="the data has 2 columns user"):
        implicit_model.transform(ratings.select("user", "item", "user"))


def test_cold_start_ignores_case_and_refuses_what_it_does_not_know(spark: Any, implicit_model: Any) -> None:
    pairs = spark.createDataFrame([(100, 7), (999, 7)], "user int, item int")
    assert implicit_model.copy().setColdStartStrategy("DROP").transform(pairs).count() == 1
    with pytest.raises(ConfigError, match="coldStartStrategy is 'skip'"):
        implicit_model.copy().setColdStartStrategy("skip").transform(pairs)


def test_ids_of_a_subset_may_be_anything(spark: Any, implicit_model: Any) -> None:
    """Null, fractions, numbers in strings: what is no known id is left out, as MLlib's join does."""
    strings = spark.createDataFrame([("100",), ("x",), (None,), ("101.5",), ("1e30",)], "user string")
    assert [row["user"] for row in implicit_model.recommendForUserSubset(strings, 1).collect()] == [100]
    numbers = spark.createDataFrame([(100.0,), (100.5,), (float("nan"),), (1e19,), (None,)], "user double")
    assert [row["user"] for row in implicit_model.recommendForUserSubset(numbers, 1).collect()] == [100]


def test_a_loaded_model_survives_being_saved_onto_itself(tmp_path: Path, implicit_model: Any) -> None:
    from wals_spark import WALSModel

    path = str(tmp_path / "model")
    implicit_model.save(path)
    loaded = WALSModel.load(path).setPredictionCol("score")
    loaded.write().overwrite().save(path)
    again = WALSModel.load(path)
    assert again.getPredictionCol() == "score"
    assert vectors(again.userFactors).keys() == vectors(implicit_model.userFactors).keys()


def test_an_unknown_parameter_is_refused() -> None:
    from wals_spark import WALS

    with pytest.raises(ConfigError, match="no parameter ranks; expected some of rank"):
        WALS(ranks=3)


def test_weights_of_a_column_weigh_the_ratings(spark: Any, ratings: Any) -> None:
    from pyspark.sql import functions as F

    from wals_spark import WALS

    weighted = ratings.withColumn("w", F.col("rating") / 2)
    model = WALS(rank=3, maxIter=6, regParam=0.1, weightCol="w", numWorkers=1, precision="float64").fit(weighted)
    users, items = vectors(model.userFactors), vectors(model.itemFactors)
    rows = [(row["user"], row["item"], row["rating"], row["w"]) for row in weighted.collect()]
    loss = sum(w * (r - users[u] @ items[i]) ** 2 for u, i, r, w in rows)
    loss += 0.1 * sum(float(x @ x) for side in (users, items) for x in side.values())
    pairs: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for u, i, r, w in rows:
        pairs.setdefault((u, i), []).append((r, w))
    # Two observations of a pair are one of their mean, but for a constant.
    for seen in pairs.values():
        mean = sum(r * w for r, w in seen) / sum(w for _, w in seen)
        loss -= sum(w * (r - mean) ** 2 for r, w in seen)
    assert model.losses[-1] == pytest.approx(loss, rel=1e-5)
    with pytest.raises(InputError, match=r"w holds -1\.0"):
        WALS(rank=2, weightCol="w").fit(
            spark.createDataFrame([(1, 1, 1.0, -1.0)], "user int, item int, rating double, w double")
        )
    with pytest.raises(ConfigError, match="weightCol and implicitPrefs=True are both set"):
        WALS(implicitPrefs=True, weightCol="w").fit(weighted)
