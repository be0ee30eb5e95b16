"""Every file below conf/ and docker/ stays valid."""

from __future__ import annotations

import ast
import json
import subprocess
from pathlib import Path

import pytest
import yaml

from wals_spark.config import load_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("path", sorted((ROOT / "conf").glob("*.yaml")), ids=lambda path: path.name)
def test_pipeline_configurations_say_what_they_set(path):
    """Every value of the file is the value of the resolved configuration: no key is ignored or overridden."""
    resolved = load_config(path).model_dump(mode="json")
    written = yaml.safe_load(path.read_text())
    assert written
    for section, value in written.items():
        for key, expected in value.items() if isinstance(value, dict) else [(None, value)]:
            found = resolved[section] if key is None else resolved[section][key]
            assert found in (expected, [expected]), (section, key)


@pytest.mark.parametrize("path", sorted((ROOT / "conf").glob("*.conf")), ids=lambda path: path.name)
def test_spark_properties_are_key_and_value(path):
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    assert all(line.startswith("spark.") and len(line.split(None, 1)) == 2 for line in lines)


def test_kubernetes_example_asks_spark_for_the_gpu_that_the_pod_has():
    spec = yaml.safe_load((ROOT / "conf/k8s/sparkapplication.yaml").read_text())["spec"]
    assert int(spec["sparkConf"]["spark.executor.resource.gpu.amount"]) == spec["executor"]["gpu"]["quantity"]
    assert spec["sparkConf"]["spark.dynamicAllocation.enabled"] == "false"
    assert (ROOT / spec["mainApplicationFile"].removeprefix("local:///opt/wals_spark/")).is_file()


def test_databricks_example_calls_the_entry_point_that_the_wheel_has():
    job = yaml.safe_load((ROOT / "conf/databricks/wals_spark.job.yml").read_text())
    task = job["resources"]["jobs"]["wals_spark_pipeline"]["tasks"][0]["python_wheel_task"]
    assert f'{task["entry_point"]} = "wals_spark.cli:main"' in (ROOT / "pyproject.toml").read_text()


def test_emr_step_names_a_job_that_exists():
    arguments = json.loads((ROOT / "conf/emr/steps.json").read_text())[0]["HadoopJarStep"]["Args"]
    job = next(argument for argument in arguments if argument.endswith(".py"))
    assert (ROOT / "jobs" / Path(job).name).is_file()


def test_airflow_example_parses_and_names_jobs_that_exist():
    tree = ast.parse((ROOT / "conf/airflow/wals_spark_daily.py").read_text())
    stages = [
        node.elts[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Tuple) and len(node.elts) == 2 and isinstance(node.elts[0], ast.Constant)
    ]
    assert len(stages) == 8
    assert all((ROOT / "jobs" / f"{stage}.py").is_file() for stage in stages)


def test_compose_file_is_yaml_with_a_master_and_workers():
    services = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())["services"]
    assert set(services) == {"master", "worker", "driver"}
    assert len({service["image"] for service in services.values()}) == 1
    shared = [{mount.partition(":")[2] for mount in service["volumes"]} for service in services.values()]
    assert set.intersection(*shared), "driver and workers share no directory for the warehouse"


@pytest.mark.parametrize("script", ["scripts/install.sh", "scripts/run.sh", "docker/getGpusResources.sh", ".ci/run"])
def test_shell_scripts_parse(script):
    assert subprocess.run(["bash", "-n", str(ROOT / script)], capture_output=True).returncode == 0


def test_gpu_discovery_prints_what_spark_reads(tmp_path):
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    fake.chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / "docker/getGpusResources.sh")],
        capture_output=True,
        text=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
    )
    assert json.loads(done.stdout) == {"name": "gpu", "addresses": ["0", "1"]}
