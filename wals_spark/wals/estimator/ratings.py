"""Ratings of any ids to a matrix of dense row and column numbers, in Parquet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from wals_spark import storage
from wals_spark.errors import InputError
from wals_spark.tables.base import without_wildcards
from wals_spark.wals.estimator.params import EstimatorParams

WHOLE = ("tinyint", "smallint", "int", "bigint")


def named(dataset: DataFrame, name: str) -> Column:
    """The column of a name, dots and all.

    Raises
    ------
    InputError
        There is no such column, or there are several.
    """
    found = dataset.columns.count(name)
    if found != 1:
        have = ", ".join(dataset.columns)
        if found:
            raise InputError(f"the data has {found} columns {name}: {have}")
        raise InputError(f"the data has no column {name}; it has {have}")
    return F.col(quoted(name))


def quoted(name: str) -> str:
    """A column's name such that dots in it are no paths."""
    return "`" + name.replace("`", "``") + "`"


def id_column(column: str, dataset: DataFrame) -> Column:
    """The ids of a column as bigint; anything that is not a whole number stops the job with its value.

    Raises
    ------
    InputError
        No such column, or one of another type than numbers.
    """
    value = named(dataset, column)
    kind = dict(dataset.dtypes)[column]
    if kind not in (*WHOLE, "float", "double") and not kind.startswith("decimal"):
        raise InputError(
            f"column {column} is {kind}; ids must be whole numbers (number them, for example with StringIndexer)"
        )
    whole = value.try_cast("bigint")
    message = F.concat(F.lit(f"WALS: {column} holds "), F.coalesce(value.cast("string"), F.lit("null")))
    expected = F.concat(message, F.lit(", expected whole numbers of 64 bits"))
    return F.when(whole.isNotNull() & (whole == value), whole).otherwise(F.raise_error(expected).cast("bigint"))


def known_id(column: str, dataset: DataFrame) -> Column:
    """The ids of a column as bigint; null for what cannot be an id, which is as unknown as an unseen id.

    Numbers in strings count as numbers, as in MLlib's joins.
    """
    value = named(dataset, column)
    if dict(dataset.dtypes)[column] in WHOLE:
        return value.cast("bigint")
    number = value.try_cast("double")
    return F.when(number == F.floor(number), value.try_cast("decimal(38, 9)")).try_cast("bigint")


def training_facts(params: EstimatorParams, dataset: DataFrame) -> dict[str, Any]:
    """What a model remembers of its training's data: the rating's column, and the types of the ids ("row", "col")."""
    kinds = dict(dataset.dtypes)
    types = {side: kinds[name] for side, name in (("row", params.getUserCol()), ("col", params.getItemCol()))}
    return {"ratingCol": params.getRatingCol(), **types}


def fold_in_cells(
    dataset: DataFrame, own: tuple[str, T.DataType], other: str, rating: str, duplicates: str
) -> DataFrame:
    """Checked ratings of rows to fold in.

    Parameters
    ----------
    dataset : DataFrame
    own : (str, DataType)
        The column of the ids to fold in, and their type in the training.
    other : str
        The column of ids of the other side.
    rating : str
        The column of ratings; empty = all are 1.
    duplicates : {"keep", "sum", "refuse"}

    Returns
    -------
    DataFrame
        Columns (own bigint, other bigint, value double).

    Raises
    ------
    InputError
        A column is missing, an id is not a whole number or beyond its type in the training, a rating is not a finite
        number, or a pair is repeated under "refuse". The data is read once to find these.
    """
    column, kind = own
    number = id_column(column, dataset)
    beyond = F.concat(
        F.lit(f"WALS: {column} holds "),
        number.cast("string"),
        F.lit(f", expected {kind.simpleString()} as in training"),
    )
    fits = number.try_cast(kind).try_cast("bigint") == number
    cells = dataset.select(
        F.when(fits, number).otherwise(F.raise_error(beyond).cast("bigint")).alias("own"),
        id_column(other, dataset).alias("other"),
        rating_values(rating, dataset).alias("value"),
    )
    with input_errors():
        if duplicates == "refuse":
            repeated = cells.groupBy("own", "other").count().where("count > 1").head()
            if repeated is not None:
                raise InputError(
                    f"{column} {repeated['own']} and {other} {repeated['other']} have {repeated['count']} ratings, and "
                    "the training refused repeated pairs (duplicates)"
                )
        else:
            cells.write.format("noop").mode("overwrite").save()
    return cells


def write_matrix(params: EstimatorParams, dataset: DataFrame, directory: str) -> tuple[DataFrame, DataFrame]:
    """Write the ratings as Parquet cells (row_id, col_id, value[, weight]) into ``directory/matrix``.

    Parameters
    ----------
    params : EstimatorParams
        Name the columns.
    dataset : DataFrame
    directory : str

    Returns
    -------
    users, items : DataFrame
        Columns (id, number): row and column numbers of the ids, both rising.

    Raises
    ------
    InputError
        A column is missing, an id is not a whole number, or a rating or weight is not finite.
    """
    spark = dataset.sparkSession
    columns = _value_columns(params, dataset)
    cells = dataset.select(
        id_column(params.getUserCol(), dataset).alias("user"),
        id_column(params.getItemCol(), dataset).alias("item"),
        *(column.alias(name) for name, column in columns.items()),
    )
    raw = storage.join(directory, "raw")
    with input_errors():
        cells.write.parquet(raw)
    schema = ", ".join(["user bigint, item bigint", *(f"{name} double" for name in columns)])
    cells = spark.read.schema(schema).parquet(without_wildcards(raw))
    users, items = (_number(spark, cells, name, directory) for name in ("user", "item"))
    matrix = (
        cells.join(users.select(F.col("id").alias("user"), F.col("number").alias("row_id")), "user")
        .join(items.select(F.col("id").alias("item"), F.col("number").alias("col_id")), "item")
        .select("row_id", "col_id", *columns)
    )
    matrix.write.parquet(storage.join(directory, "matrix"))
    storage.remove(raw)
    return users, items


def matrix_files(directory: str) -> tuple[str, ...]:
    """The files that `write_matrix` wrote."""
    matrix = storage.join(directory, "matrix")
    names = (info.path.rpartition("/")[2] for info in storage.list_files(matrix) if info.path.endswith(".parquet"))
    return tuple(storage.join(matrix, name) for name in names)


def _value_columns(params: EstimatorParams, dataset: DataFrame) -> Mapping[str, Column]:
    """The columns ``value`` and, where asked for, ``weight``."""
    columns = {"value": rating_values(params.getRatingCol(), dataset)}
    if params.isSet(params.weightCol):
        columns["weight"] = _finite(params.getWeightCol(), dataset, least=0.0)
    return columns


def rating_values(rating: str, dataset: DataFrame) -> Column:
    """A column of ratings as double; 1 where its name is empty. A value that is not finite stops the job with it.

    Raises
    ------
    InputError
        No such column, or one that is not of numbers.
    """
    if rating and rating not in dataset.columns:
        raise InputError(
            f"the data has no column {rating}; it has {', '.join(dataset.columns)} (ratingCol='' = all are 1)"
        )
    return _finite(rating, dataset) if rating else F.lit(1.0)


@contextmanager
def input_errors() -> Iterator[None]:
    """Raise what `raise_error` says in a job as an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        message = str(error)
        if "WALS: " in message:
            raise InputError(message[message.index("WALS: ") + 6 :].splitlines()[0]) from None
        raise


def _number(spark: SparkSession, cells: DataFrame, name: str, directory: str) -> DataFrame:
    """Number the distinct ids of a column in rising order: (id, number)."""
    distinct = cells.select(F.col(name).alias("id")).distinct()
    # One partition numbers the distinct ids; ten million of them are 80 MB.
    number = F.row_number().over(Window.orderBy("id")) - 1
    path = storage.join(directory, f"{name}-ids")
    distinct.select("id", number.alias("number")).write.parquet(path)
    return spark.read.schema("id bigint, number int").parquet(without_wildcards(path))


def _finite(column: str, dataset: DataFrame, least: float = float("-inf")) -> Column:
    """A column as double; anything that is not finite, or below `least`, stops the job with its value."""
    kind = dict(dataset.dtypes).get(column, "")
    if kind not in (*WHOLE, "float", "double") and not kind.startswith("decimal"):
        named(dataset, column)
        raise InputError(f"column {column} is {kind}, expected numbers")
    value = named(dataset, column).cast("double")
    shown = F.coalesce(value.cast("string"), F.lit("null"))
    bad = F.raise_error(F.concat(F.lit(f"WALS: {column} holds "), shown)).cast("double")
    good = value.isNotNull() & ~F.isnan(value) & (F.abs(value) < float("inf")) & (value >= least)
    return F.when(good, value).otherwise(bad)
