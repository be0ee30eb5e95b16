"""What a configuration promises before any executor has registered."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from pyspark.resource import ResourceProfileBuilder, TaskResourceRequests

from wals_spark.cluster import preflight
from wals_spark.cluster.preflight import expected_slots
from wals_spark.errors import ConfigError

ONE_GPU_EACH = {"spark.executor.instances": "3", "spark.executor.cores": "8", "spark.executor.resource.gpu.amount": "1"}


@pytest.mark.parametrize(
    ("conf", "slots"),
    [
        ({}, 1),
        ({"spark.executor.instances": "4"}, 4),
        ({"spark.executor.instances": "4", "spark.executor.cores": "5"}, 20),
        ({"spark.executor.instances": "4", "spark.executor.cores": "5", "spark.task.cpus": "2"}, 8),
        ({"spark.master": "local-cluster[2, 3, 1024]"}, 6),
        ({"spark.master": "local-cluster[2,4,1024]", "spark.executor.cores": "2"}, 4),
        (ONE_GPU_EACH | {"spark.task.resource.gpu.amount": "0.25"}, 12),
    ],
)
def test_slots_of_the_default_profile(conf: dict[str, str], slots: int) -> None:
    assert expected_slots(conf) == slots


@pytest.mark.parametrize(("cpus", "slots"), [(1, 3), (5, 3), (9, 0)])
def test_a_profile_with_a_gpu_per_task_promises_no_more_than_the_gpus(cpus: int, slots: int) -> None:
    profile = ResourceProfileBuilder().require(TaskResourceRequests().cpus(cpus).resource("gpu", 1.0)).build
    assert expected_slots(ONE_GPU_EACH, profile) == slots


@pytest.mark.parametrize(("master", "refused"), [("local[2]", False), ("local-cluster[2,1,512]", True), ("yarn", True)])
def test_dynamic_allocation_matters_where_there_are_executors(monkeypatch, master: str, refused: bool) -> None:
    conf = {"spark.master": master, "spark.dynamicAllocation.enabled": "true"}

    class Reached(Exception):  # noqa: N818
        pass

    def slots(*_: object, **__: object) -> None:
        raise Reached

    monkeypatch.setattr(preflight, "available_slots", slots)
    session = SimpleNamespace(sparkContext=SimpleNamespace(getConf=lambda: conf))
    with pytest.raises(ConfigError if refused else Reached):
        preflight.preflight(session, workers=1, device="cpu")


@pytest.mark.parametrize("section", ["train", "fit"])
def test_messages_name_the_keys_of_the_section_that_asks(monkeypatch, section: str) -> None:
    monkeypatch.setattr(preflight, "local_gpus", lambda: 0)
    monkeypatch.setattr(preflight, "available_slots", lambda *_, **__: 1)
    session = SimpleNamespace(sparkContext=SimpleNamespace(getConf=lambda: {"spark.master": "local[1]"}))
    with pytest.raises(ConfigError, match=rf"{section}\.device is cuda.*set {section}\.device=cpu"):
        preflight.preflight(session, workers=1, device="cuda", section=section)
    with pytest.raises(ConfigError, match=rf"needs 2 concurrent tasks.*set {section}\.workers=1"):
        preflight.preflight(session, workers=2, device="cpu", section=section)
