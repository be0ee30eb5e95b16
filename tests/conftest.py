"""Fixtures of all tests: one Spark session, throw-away warehouses, the real data where it is."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
os.environ.setdefault("PYSPARK_DRIVER_PYTHON", sys.executable)
os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parent.parent
SPARK_CONF = {
    "spark.master": "local[2]",
    "spark.ui.enabled": "false",
    "spark.sql.shuffle.partitions": "2",
    "spark.default.parallelism": "2",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.memory": "1g",
    "spark.barrier.sync.timeout": "120",
}


@pytest.fixture(scope="session")
def spark() -> Iterator[Any]:
    """A local session with two slots and Delta's classes where they can be had, shared by all tests."""
    from wals_spark.cluster.session import open_session
    from wals_spark.config import Config, SparkConfig

    session = open_session(Config(spark=SparkConfig(conf=SPARK_CONF)), "wals_spark tests")
    yield session
    session.stop()


@pytest.fixture(scope="session")
def data() -> Path:
    """The directory of the real corpora and evaluation sets; tests that need it skip where it is absent."""
    path = Path(os.environ.get("WALS_SPARK_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"real data not found: {path} is absent and WALS_SPARK_DATA is not set")
    return path


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., Any]:
    """A configuration with its warehouse in a temporary directory; keyword arguments are dotted keys with __."""
    from wals_spark.config import load_config

    def make(**values: Any) -> Any:
        flags = {"warehouse": str(tmp_path / "warehouse")}
        return load_config(None, (), {**flags, **{key.replace("__", "."): value for key, value in values.items()}})

    return make


@pytest.fixture
def make_context(make_config: Callable[..., Any], spark: Any) -> Callable[..., Any]:
    """A stage context over a temporary warehouse and the shared session."""
    from wals_spark.stage import Context

    def make(**values: Any) -> Any:
        return Context(make_config(**values), lambda: spark)

    return make
