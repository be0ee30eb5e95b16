from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from wals_spark.evaluate.masked_lm import evaluate_masked_lm, make_masked_lm_task
from wals_spark.mlm.data import pack_sequences
from wals_spark.mlm.loss import score


@pytest.fixture
def task(special, monkeypatch):
    monkeypatch.setattr("wals_spark.evaluate.masked_lm.MIN_TYPES", 3)
    generator = np.random.default_rng(0)
    documents = [(np.minimum(generator.zipf(1.3, 120), 18) + 4).astype(np.int32) for _ in range(40)]
    counts = np.array([0] * 5 + [20_000, 5_000, 2_000, 300, 120, 60, 30, 12, 8, 3, 2, 1] + [0] * 6)
    pool = pack_sequences(documents, special, 34, round_robin=True)
    return make_masked_lm_task(pool, special, counts, 1, sequences=50, mask_fraction=0.15, probe_targets=60)


def shifted(model, amount):
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.bias[12:] += amount
    return other


def test_the_same_model_twice_is_not_distinguishable(task, tiny_model):
    result = evaluate_masked_lm(task, {"before": lambda: tiny_model, "after": lambda: tiny_model}, resamples=200)
    for figures in (result.differences["after"], *(bucket.differences["after"] for bucket in result.buckets)):
        for difference in figures.values():
            assert difference.value == 0
            assert not difference.excludes_zero


def test_loss_and_differences_are_those_of_the_scores(task, tiny_model):
    other = shifted(tiny_model, 2.0)
    result = evaluate_masked_lm(task, {"before": lambda: tiny_model, "after": lambda: other}, resamples=200)
    before, after = score(tiny_model, task.masked).nll, score(other, task.masked).nll
    assert result.arms["before"]["nll"].value == pytest.approx(before.mean())
    assert result.differences["after"]["nll"].value == pytest.approx((after - before).mean())
    assert result.base == "before"
    assert result.targets == len(task.masked)


def test_a_bias_towards_rare_tokens_shows_in_their_buckets_and_costs_the_frequent_ones(task, tiny_model):
    other = shifted(tiny_model, 2.0)
    result = evaluate_masked_lm(task, {"before": lambda: tiny_model, "after": lambda: other}, resamples=200)
    target = {bucket.name: bucket.differences["after"]["nll"] for bucket in result.buckets if bucket.probe == "target"}
    assert target["1-4"].high < 0
    assert all(name in target for name in ("0", "1-4"))
    context = [bucket for bucket in result.buckets if bucket.probe == "context"]
    assert all(bucket.differences["after"]["nll"].low > 0 for bucket in context)


def test_buckets_with_few_types_are_left_out(task, tiny_model, monkeypatch):
    monkeypatch.setattr("wals_spark.evaluate.masked_lm.MIN_TYPES", 4)
    result = evaluate_masked_lm(task, {"before": lambda: tiny_model}, resamples=200)
    assert {bucket.name for bucket in result.buckets} == {"0"}
    assert result.differences == {}


def test_three_arms_are_all_against_the_first(task, tiny_model):
    models = {"base": lambda: tiny_model, "a": lambda: shifted(tiny_model, 1.0), "b": lambda: shifted(tiny_model, 2.0)}
    result = evaluate_masked_lm(task, models, resamples=200)
    assert list(result.differences) == ["a", "b"]


def test_one_model_is_in_memory_at_a_time(task, tiny_model):
    import gc
    import weakref

    alive = []

    def load():
        gc.collect()
        assert all(reference() is None for reference in alive)
        model = copy.deepcopy(tiny_model)
        alive.append(weakref.ref(model))
        return model

    evaluate_masked_lm(task, {"before": load, "after": load}, resamples=200)


def test_without_probes_only_the_loss_is_measured(special, tiny_model):
    pool = pack_sequences([np.arange(5, 23, dtype=np.int32)] * 20, special, 34)
    task = make_masked_lm_task(
        pool, special, np.ones(23, np.int64), 1, sequences=5, mask_fraction=0.15, probe_targets=0
    )
    result = evaluate_masked_lm(task, {"before": lambda: tiny_model}, resamples=200)
    assert result.buckets == []
    assert result.sequences == 5
