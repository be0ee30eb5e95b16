"""The Spark session. Master, cores and memory are spark-submit's; only what correctness needs is set here."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from wals_spark.cluster import class_archive
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
QUIET = f"-Dlog4j2.configurationFile={_LOGGING}"
"""For drivers started here: one that is already running keeps its own logging."""
LIGHT = "-XX:TieredStopAtLevel=1"
"""For drivers started here with Parquet tables: their JVM only hands bytes about, and its optimising compiler would
take more processor time from the tasks while it starts (4 of 11 s, measured) than it saves. Delta's writer needs it."""
DELTA = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
}
DELTA_TUNING = {
    # Tasks that read a table's log; 50 by default, for tables of millions of files.
    "spark.databricks.delta.snapshotPartitions": "2",
    # Tasks in which VACUUM lists directories; by default 10,000, which take two cores 48 s for an empty table.
    "spark.sql.sources.parallelPartitionDiscovery.parallelism": "64",
}
SHIPPED_WITH_SPARK = (
    "com.fasterxml.jackson.core:*",
    "com.github.luben:*",
    "com.google.code.findbugs:*",
    "commons-logging:*",
    "commons-pool:*",
    "io.airlift:*",
    "org.antlr:*",
    "org.apache.hadoop:*",
    "org.apache.logging.log4j:*",
    "org.apache.parquet:*",
    "org.locationtech.jts:*",
    "org.roaringbitmap:*",
    "org.scala-lang:*",
    "org.slf4j:*",
    "org.xerial.snappy:*",
)
"""Dependencies of Delta that every Spark has: not fetched, so that 8 jars (13 MB) remain."""


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
    for key, value in session_conf(config).items():
        builder = builder.config(key, value)
    try:
        spark = builder.getOrCreate()
    except Exception as error:
        if config.table_format == "delta" and config.spark.delta_jars is None and "JAVA_GATEWAY_EXITED" in str(error):
            raise ConfigError(
                _no_delta(
                    "Spark's JVM ended while starting, as it does when it cannot fetch its packages (what it printed "
                    "above says which)"
                )
            ) from error
        raise
    spark.sparkContext.setLogLevel(os.environ.get("WALS_SPARK_SPARK_LOG_LEVEL", "ERROR"))
    if config.table_format == "delta":
        _require_delta(spark)
    return spark


def driver_conf(config: Config) -> dict[str, str]:
    """Properties of a driver's JVM that is started here."""
    light = "" if config.table_format == "delta" else LIGHT
    options = (QUIET, light, class_archive.java_options())
    return {"spark.driver.extraJavaOptions": " ".join(option for option in options if option)}


def session_conf(config: Config) -> dict[str, str]:
    """All properties of a session that is started here; ``spark.conf`` overrides all but those that bring Delta."""
    ours = {**CORRECTNESS, **driver_conf(config)}
    if config.table_format != "delta":
        return {**ours, **config.spark.conf}
    return {**ours, **DELTA_TUNING, **config.spark.conf, **delta_conf(config)}


def delta_conf(config: Config) -> dict[str, str]:
    """Properties that bring Delta: a directory of jars, or the package by name."""
    if config.spark.delta_jars is None:
        return {
            **DELTA,
            "spark.jars.packages": DELTA_PACKAGE,
            "spark.jars.excludes": ",".join(SHIPPED_WITH_SPARK),
        }
    jars = sorted(Path(config.spark.delta_jars).glob("*.jar"))
    names = " ".join(jar.name for jar in jars)
    missing = [part for part in ("delta-spark", "delta-storage") if part not in names]
    if missing:
        raise ConfigError(
            f"spark.delta_jars: {config.spark.delta_jars} holds {len(jars)} jars and none named {', '.join(missing)}*; "
            f"expected those of {DELTA_PACKAGE} and its dependencies"
        )
    return {**DELTA, "spark.jars": ",".join(str(jar.resolve()) for jar in jars)}


def has_delta(spark: SparkSession) -> bool:
    """Whether the session has Delta's classes and its SQL extension."""
    from pyspark.errors import AnalysisException

    if DELTA["spark.sql.extensions"] not in (spark.conf.get("spark.sql.extensions", "") or ""):
        return False
    try:
        spark.read.format("delta").load("file:/there-is-no-such-table")
    except AnalysisException as error:
        return "DATA_SOURCE_NOT_FOUND" not in str(error)
    except Exception as error:
        if "DATA_SOURCE_NOT_FOUND" in str(error):
            return False
        raise
    return True


def _require_delta(spark: SparkSession) -> None:
    extensions = spark.conf.get("spark.sql.extensions", "") or ""
    if DELTA["spark.sql.extensions"] not in extensions:
        properties = " ".join(f"--conf {key}={value}" for key, value in DELTA.items())
        raise ConfigError(_no_delta(f"the running session was started without its SQL extension ({properties})"))
    if not has_delta(spark):
        raise ConfigError(_no_delta("the running session does not have its classes"))


def _no_delta(what: str) -> str:
    return (
        f"table_format is delta, but {what}. Let Spark fetch its jars from a Maven repository (nothing to set where "
        f"this command starts Spark itself; spark-submit --packages {DELTA_PACKAGE} --exclude-packages "
        f"{','.join(SHIPPED_WITH_SPARK)} where it does not), or set spark.delta_jars to a directory that holds them "
        "(spark-submit: --jars), or set table_format: parquet"
    )
