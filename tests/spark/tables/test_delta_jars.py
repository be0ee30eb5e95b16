"""Where Delta's jars come from, in processes of their own: a JVM reads its jars when it starts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlparse

import pytest

from wals_spark.cluster.session import has_delta

pytestmark = [pytest.mark.spark, pytest.mark.delta]

WRITE_AND_READ = """
import json, sys
import pyarrow as pa
from wals_spark import schemas
from wals_spark.config import load_config
from wals_spark.errors import WalsSparkError
from wals_spark.stage import Context

context = Context(load_config(None, (), json.loads(sys.argv[1])))
columns = {"token_id": [0], "token": ["a"], "count": [7], "document_count": [1], "is_special": [False]}
try:
    context.tables.replace_rows(schemas.VOCABULARY, pa.table(columns), {})
except WalsSparkError as error:
    print(json.dumps({"error": f"{type(error).__name__}: {error}", "exit_code": error.exit_code}))
else:
    print(json.dumps({"count": context.tables.read(schemas.VOCABULARY).collect()[0]["count"]}))
"""


@pytest.fixture
def offline(tmp_path):
    """Write and read a Delta table on a machine without network and without Spark's cache of jars."""

    def run(**settings):
        nowhere = "-Dhttp.proxyHost=127.0.0.1 -Dhttp.proxyPort=9 -Dhttps.proxyHost=127.0.0.1 -Dhttps.proxyPort=9"
        conf = {
            "spark.master": "local[1]",
            "spark.ui.enabled": "false",
            "spark.driver.memory": "1g",
            "spark.jars.ivy": str(tmp_path / "ivy"),
            "spark.driver.extraJavaOptions": f"{nowhere} -Dmaven.repo.local={tmp_path / 'm2'} -Duser.home={tmp_path}",
        }
        values = {"warehouse": str(tmp_path / "warehouse"), "table_format": "delta", "spark.conf": conf, **settings}
        command = [sys.executable, "-c", WRITE_AND_READ, json.dumps(values)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def test_a_directory_of_jars_is_all_that_delta_needs(spark, offline, tmp_path):
    jars = [Path(urlparse(jar).path) for jar in (spark.conf.get("spark.jars", "") or "").split(",") if jar]
    if not has_delta(spark) or not jars:
        pytest.skip("Delta's jars cannot be had: no Maven repository, and WALS_SPARK_DELTA_JARS is not set")
    directory = tmp_path / "jars"
    directory.mkdir()
    for jar in jars:
        shutil.copy(jar, directory / jar.name)
    assert offline(**{"spark.delta_jars": str(directory)}) == {"count": 7}


def test_neither_repository_nor_directory_says_what_to_do(offline):
    found = offline()
    assert found["exit_code"] == 2
    assert "ConfigError: table_format is delta" in found["error"]
    assert "set spark.delta_jars to a directory that holds them" in found["error"]
