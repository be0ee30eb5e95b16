"""What the JVM of a session is started with."""

from __future__ import annotations

import pytest

from wals_spark.cluster.session import DELTA_PACKAGE, DELTA_TUNING, LIGHT, delta_conf, driver_conf, session_conf
from wals_spark.config import Config, SparkConfig
from wals_spark.errors import ConfigError


def test_jars_are_fetched_by_name_without_what_spark_ships():
    conf = delta_conf(Config(table_format="delta"))
    assert conf["spark.jars.packages"] == DELTA_PACKAGE
    assert "org.apache.hadoop:*" in conf["spark.jars.excludes"].split(",")


def test_a_directory_of_jars_is_used_offline(tmp_path):
    for name in ("delta-spark_4.2_2.13-4.4.0.jar", "delta-storage-4.4.0.jar"):
        (tmp_path / name).touch()
    conf = delta_conf(Config(table_format="delta", spark=SparkConfig(delta_jars=str(tmp_path))))
    assert "spark.jars.packages" not in conf
    assert len(conf["spark.jars"].split(",")) == 2


@pytest.mark.parametrize(("table_format", "light"), [("parquet", True), ("delta", False)])
def test_only_delta_pays_for_the_optimising_compiler(table_format, light):
    options = driver_conf(Config(table_format=table_format))["spark.driver.extraJavaOptions"]
    assert (LIGHT in options) == light
    assert "log4j2.configurationFile" in options


def test_a_directory_without_the_jars_is_refused(tmp_path):
    (tmp_path / "delta-storage-4.4.0.jar").touch()
    with pytest.raises(ConfigError, match="none named delta-spark"):
        delta_conf(Config(table_format="delta", spark=SparkConfig(delta_jars=str(tmp_path))))


def test_the_configuration_overrides_our_tuning_of_delta():
    name = next(iter(DELTA_TUNING))
    assert session_conf(Config(table_format="delta"))[name] == DELTA_TUNING[name]
    given = Config(table_format="delta", spark=SparkConfig(conf={name: "7"}))
    assert session_conf(given)[name] == "7"
    assert name not in session_conf(Config())
