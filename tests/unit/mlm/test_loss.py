from __future__ import annotations

import numpy as np
import pytest
import torch

from wals_spark.errors import InputError
from wals_spark.mlm.data import encode, mask_tokens, pack_sequences
from wals_spark.mlm.loss import load_masked_lm, replaced_rows, score, target_metrics, unigram_nll


@pytest.fixture
def masked(tiny_tokenizer, special):
    texts = ["the cat sat on a mat while the dog ran to the old house"] * 3 + [
        "a bird sang by the red river and the cat"
    ] * 4
    return mask_tokens(pack_sequences(encode(tiny_tokenizer, texts), special, 18), special, 0.2, 3)


def test_scores_equal_a_full_forward_pass(tiny_model, masked):
    scores = score(tiny_model, masked, batch_size=2)
    with torch.inference_mode():
        logits = tiny_model(torch.from_numpy(masked.inputs.astype(np.int64))).logits
    logp = logits.log_softmax(-1)[masked.row, masked.column]
    target = torch.from_numpy(masked.target.astype(np.int64))
    expected = -logp.gather(1, target[:, None])[:, 0].numpy()
    assert np.allclose(scores.nll, expected, atol=1e-5)
    order = logp.argsort(dim=1, descending=True)
    rank = (order == target[:, None]).int().argmax(1).numpy()
    assert np.array_equal(scores.rank, rank)


def test_the_batch_size_changes_nothing(tiny_model, masked):
    one, many = score(tiny_model, masked, batch_size=1), score(tiny_model, masked, batch_size=64)
    assert np.allclose(one.nll, many.nll, atol=1e-5)


def test_a_model_without_a_known_head_is_scored_all_the_same(tiny_model, masked):
    expected = score(tiny_model, masked).nll

    class Plain(torch.nn.Module):
        base_model_prefix = "encoder"

        def __init__(self, model):
            super().__init__()
            self.inner, self.config = model, model.config

        def get_input_embeddings(self):
            return self.inner.get_input_embeddings()

        def forward(self, ids):
            return self.inner(ids)

    assert np.allclose(score(Plain(tiny_model).eval(), masked).nll, expected, atol=1e-5)


def test_the_model_keeps_its_mode(tiny_model, masked):
    tiny_model.train()
    score(tiny_model, masked)
    assert tiny_model.training


def test_nan_weights_are_reported(tiny_model, masked):
    with torch.no_grad():
        tiny_model.lm_head.bias[3] = float("nan")
    with pytest.raises(InputError, match="not finite at"):
        score(tiny_model, masked)


def test_an_id_outside_the_vocabulary_is_reported(tiny_model, masked):
    masked.inputs[0, 3] = 99
    with pytest.raises(InputError, match="99 is outside the model's vocabulary of 23"):
        score(tiny_model, masked)


def test_sequences_longer_than_the_positions_are_reported(tiny_model, tiny_tokenizer, special):
    texts = ["the cat sat on a mat"] * 20
    long = mask_tokens(pack_sequences(encode(tiny_tokenizer, texts), special, 39), special, 0.2, 3)
    with pytest.raises(InputError, match="39 tokens do not fit the model's 38 positions"):
        score(tiny_model, long)


def test_a_checkpoint_without_a_head_is_refused(tiny_model, tmp_path):
    tiny_model.roberta.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"lacks \d+ weights of a masked-LM model"):
        load_masked_lm(str(tmp_path))


def test_a_missing_checkpoint_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="cannot load a masked-LM model"):
        load_masked_lm(str(tmp_path / "nothing"))


def test_a_saved_model_scores_as_before(tiny_model, masked, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    assert np.array_equal(score(load_masked_lm(str(tmp_path)), masked).nll, score(tiny_model, masked).nll)


def test_unigram_loss_is_the_smoothed_log_frequency(masked):
    counts = np.zeros(23, np.int64)
    counts[5] = 76
    expected = np.where(masked.target == 5, -np.log(77 / 99), -np.log(1 / 99))
    assert np.allclose(unigram_nll(masked, counts), expected)


def test_columns_are_the_figures_per_target(tiny_model, masked):
    scores = score(tiny_model, masked)
    found = target_metrics(scores)
    assert set(found) == {"nll", "top1", "top5", "mrr"}
    assert np.array_equal(found["nll"], scores.nll)
    assert np.array_equal(found["top1"], scores.rank == 0)
    assert np.array_equal(found["top5"], scores.rank < 5)
    assert found["mrr"].tolist() == (1 / (scores.rank + 1)).tolist()


def test_replaced_rows_and_bias_are_there_inside_the_block_only(tiny_model):
    E, b = tiny_model.get_input_embeddings().weight, tiny_model.get_output_embeddings().bias
    before = E.detach().clone(), b.detach().clone()
    ids = np.array([3, 7])
    with replaced_rows(tiny_model, ids, np.ones((2, E.shape[1])), np.ones(len(b))):
        assert bool((E[ids] == 1).all())
        assert bool((b == 1).all())
        assert torch.equal(E[4], before[0][4])
    assert torch.equal(E, before[0])
    assert torch.equal(b, before[1])
    with replaced_rows(tiny_model, bias=np.zeros(len(b))):
        assert torch.equal(E, before[0])
        assert not b.any()


def test_replaced_rows_come_back_after_an_error(tiny_model):
    E = tiny_model.get_input_embeddings().weight
    before = E.detach().clone()

    def fail() -> None:
        with replaced_rows(tiny_model, np.array([3]), np.ones((1, E.shape[1]))):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.equal(E, before)
