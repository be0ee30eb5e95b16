from __future__ import annotations

import numpy as np
import pytest

from wals_spark.demo import training
from wals_spark.mlm.data import encode, mask_tokens, pack_sequences
from wals_spark.mlm.pretrain import Schedule
from wals_spark.mlm.statistics import Clusters

TEXT = "the cat sat on a mat while the dog ran to the old house and a bird sang by the red river"


@pytest.fixture
def arm(tmp_path, monkeypatch, tiny_tokenizer, tiny_model, special):
    """Trains the arm `random weights` on a toy corpus."""
    monkeypatch.setattr(training, "SCHEDULE", Schedule(steps=6, batch=4))
    start = tmp_path / "start"
    tiny_model.config.save_pretrained(start)
    tiny_tokenizer.tokenizer.save(str(start / "tokenizer.json"))
    packed = pack_sequences(encode(tiny_tokenizer, [TEXT] * 30), special, 18)
    data = training.TrainingData(packed, mask_tokens(packed, special, 0.15, 1), special, "hash")

    def train(name=training.RANDOM, **values):
        settings = {
            "start": str(start),
            "initial": str(start),
            "counts": np.arange(23),
            "initial_hash": "h",
            "seed": 1,
            **values,
        }
        return training.train_arm(name, str(tmp_path / "arm"), values.pop("data", data), **settings)

    train.directory = tmp_path / "arm"
    train.data = data
    return train


def test_a_finished_arm_is_not_trained_again(arm):
    first, ran = arm()
    second, again = arm()
    assert (ran, again) == (True, False)
    assert first.steps == second.steps
    assert np.array_equal(first.nll, second.nll)
    assert (arm.directory / "tokenizer.json").is_file()


@pytest.mark.slow
def test_another_seed_or_arm_trains_again(arm):
    arm()
    assert arm(seed=2)[1] is True
    assert arm(training.BIAS, seed=2)[1] is True


@pytest.mark.slow
def test_an_interrupted_arm_is_trained_again(arm):
    arm()
    (arm.directory / training.MARKER).unlink()
    assert arm()[1] is True


def test_the_head_bias_arm_starts_at_the_unigram_level(arm):
    random, _ = arm()
    bias, _ = arm(training.BIAS, counts=np.bincount(arm.data.train.ids[:, 1:-1].ravel(), minlength=23))
    assert bias.nll[0].mean() < random.nll[0].mean() - 0.2


def test_final_differences_are_of_the_last_step():
    curves = {
        "a": training.ArmResult([0, 1], np.array([[5.0, 5.0], [2.0, 3.0]]), 1.0),
        "b": training.ArmResult([0, 1], np.array([[5.0, 5.0], [3.0, 4.5]]), 1.0),
    }
    found = training.final_differences(curves, Clusters(np.array([0, 1]), 100, 1), (("a", "b"),))
    assert found["a", "b"].value == -1.25
