"""The Spark session. Master, cores and memory are spark-submit's; only what correctness needs is set here."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from wals_spark.config import Config
from wals_spark.errors import ConfigError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)

DELTA_PACKAGE = "io.delta:delta-spark_4.2_2.13:4.4.0"
CORRECTNESS = {
    # Timestamps of the metrics table mean the same on every machine.
    "spark.sql.session.timeZone": "UTC",
    # A progress bar of ours, or log lines; not Spark's between them.
    "spark.ui.showConsoleProgress": "false",
    # A barrier that waits for a lost task ends in minutes, not in the default year.
    "spark.barrier.sync.timeout": "1800",
    # A crashed or hung Python worker leaves its stack in the log.
    "spark.python.worker.faulthandler.enabled": "true",
}
_LOGGING = Path(__file__).with_name("log4j2.properties").as_uri()
QUIET = {"spark.driver.extraJavaOptions": f"-Dlog4j2.configurationFile={_LOGGING}"}
"""For sessions started here: a driver that is already running keeps its own logging."""
DELTA = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
}


def open_session(config: Config, name: str = "wals_spark") -> SparkSession:
    """Get or create the session that the configuration needs.

    Raises
    ------
    ConfigError
        ``table_format: delta`` in a session that cannot read Delta, with the ways to get the jars.
    """
    from pyspark.sql import SparkSession

    # Without an activated environment, workers would use whatever python3 is on PATH.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ.setdefault("PYSPARK_DRIVER_PYTHON", sys.executable)
    builder = SparkSession.builder.appName(name)
    for key, value in {**CORRECTNESS, **QUIET, **config.spark.conf}.items():
        builder = builder.config(key, value)
    if config.table_format == "delta":
        for key, value in delta_conf(config).items():
            builder = builder.config(key, value)
    try:
        spark = builder.getOrCreate()
    except Exception as error:
        if config.table_format == "delta" and "unresolved dependency" in str(error).lower():
            raise ConfigError(_no_delta("its jars could not be resolved by package name")) from error
        raise
    spark.sparkContext.setLogLevel(os.environ.get("WALS_SPARK_SPARK_LOG_LEVEL", "ERROR"))
    if config.table_format == "delta" and not _has_delta(spark):
        raise ConfigError(_no_delta("the running session has no Delta classes"))
    return spark


def delta_conf(config: Config) -> dict[str, str]:
    """Properties that bring Delta: a directory of jars, or the package by name."""
    if config.spark.delta_jars is None:
        return {**DELTA, "spark.jars.packages": DELTA_PACKAGE, "spark.jars.excludes": ",".join(SHIPPED_WITH_SPARK)}
    jars = sorted(Path(config.spark.delta_jars).glob("*.jar"))
    names = " ".join(jar.name for jar in jars)
    missing = [part for part in ("delta-spark", "delta-storage") if part not in names]
    if missing:
        raise ConfigError(
            f"spark.delta_jars: {config.spark.delta_jars} holds {len(jars)} jars and none named {', '.join(missing)}*; "
            f"expected those of {DELTA_PACKAGE} and its dependencies"
        )
    return {**DELTA, "spark.jars": ",".join(str(jar.resolve()) for jar in jars)}


SHIPPED_WITH_SPARK = ("org.slf4j:slf4j-api", "com.fasterxml.jackson.core:*", "org.scala-lang:*")


def _has_delta(spark: SparkSession) -> bool:
    extensions = spark.conf.get("spark.sql.extensions", "") or ""
    return "DeltaSparkSessionExtension" in extensions


def _no_delta(what: str) -> str:
    return (
        f"table_format is delta, but {what}. Either let Spark fetch them (spark-submit --packages {DELTA_PACKAGE}, "
        "needs a Maven repository), or set spark.delta_jars to a directory that holds the jars, "
        "or set table_format: parquet"
    )
