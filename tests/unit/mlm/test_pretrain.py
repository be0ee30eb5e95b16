from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from wals_spark.errors import InputError
from wals_spark.mlm.data import encode, mask_tokens, pack_sequences
from wals_spark.mlm.pretrain import Schedule, evaluation_steps, pretrain
from wals_spark.mlm.statistics import Clusters

TEXT = "the cat sat on a mat while the dog ran to the old house and a bird sang by the red river"


@pytest.fixture
def packed(tiny_tokenizer, special):
    return pack_sequences(encode(tiny_tokenizer, [TEXT] * 40), special, 18)


@pytest.fixture
def unseen(tiny_tokenizer, special):
    return mask_tokens(pack_sequences(encode(tiny_tokenizer, [TEXT] * 6), special, 18), special, 0.15, 9)


def test_the_rate_warms_up_and_falls_linearly_to_zero():
    schedule = Schedule(steps=100, learning_rate=1.0, warmup=0.1)
    assert schedule.learning_rate_at(0) == pytest.approx(0.1)
    assert schedule.learning_rate_at(9) == pytest.approx(1.0)
    assert schedule.learning_rate_at(55) == pytest.approx(0.5)
    assert schedule.learning_rate_at(99) == pytest.approx(1 / 90)


def test_evaluation_steps_start_at_0_end_at_the_last_and_lie_closer_at_the_start():
    steps = evaluation_steps(100, 8)
    assert steps[0] == 0
    assert steps[-1] == 100
    assert (np.diff(np.diff(steps)) >= -1).all()
    assert evaluation_steps(2, 8) == (0, 1, 2)


def test_training_lowers_the_loss_on_unseen_text(tiny_model, packed, unseen, special):
    curve = pretrain(tiny_model, packed, special, Schedule(200, 16, 1e-2), 1, unseen=unseen, eval_steps=(0, 100, 200))
    losses = [nll.mean() for nll in curve.nll]
    assert curve.steps == [0, 100, 200]
    assert losses[2] < losses[0] - 0.5
    assert [step for step, _ in curve.points(Clusters(unseen.document, 100, 1))] == [0, 100, 200]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tiny_model, packed, special):
    torch.set_num_threads(1)
    arms = [copy.deepcopy(tiny_model) for _ in range(3)]
    for arm, seed in zip(arms, (1, 1, 2), strict=True):
        pretrain(arm, packed, special, Schedule(5, 4), seed)
    first, second, other = (arm.state_dict()["roberta.embeddings.word_embeddings.weight"] for arm in arms)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_a_run_that_stops_early_is_the_beginning_of_the_whole_one(tiny_model, packed, unseen, special):
    torch.set_num_threads(1)
    whole, begun = (
        pretrain(
            copy.deepcopy(tiny_model),
            packed,
            special,
            Schedule(9, 4),
            1,
            unseen=unseen,
            eval_steps=(0, 2, 4, 9),
            stop=stop,
        )
        for stop in (None, 4)
    )
    assert begun.steps == [0, 2, 4]
    assert all(np.array_equal(one, other) for one, other in zip(begun.nll, whole.nll[:3], strict=True))


def test_the_global_random_state_is_left_alone(tiny_model, packed, special):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    pretrain(tiny_model, packed, special, Schedule(2, 4), 1)
    assert torch.equal(torch.rand(1), expected)


def test_more_steps_than_an_epoch_go_on_in_a_new_order(tiny_model, packed, special):
    steps = 2 * len(packed) // 8 + 3
    curve = pretrain(tiny_model, packed, special, Schedule(steps, 8), 1)
    assert curve.seconds > 0


def test_too_few_sequences_are_refused(tiny_model, packed, special):
    with pytest.raises(InputError, match="fewer than a batch of 4096"):
        pretrain(tiny_model, packed, special, Schedule(2, 4096), 1)


def test_a_diverging_loss_is_reported(tiny_model, packed, special):
    with torch.no_grad():
        tiny_model.lm_head.bias.fill_(float("nan"))
    with pytest.raises(InputError, match="training loss is nan at step 0"):
        pretrain(tiny_model, packed, special, Schedule(2, 4), 1)
