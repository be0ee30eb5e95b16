"""States of masked positions computed on a GPU; needs neither Spark nor Java."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("torch finds no GPU", allow_module_level=True)

from transformers import BertConfig, BertForMaskedLM  # noqa: E402  # after the skip

from wals_spark.mlm.data import SpecialIds  # noqa: E402
from wals_spark.mlm.masking import Maskings  # noqa: E402
from wals_spark.mlm.state_encoder import StateEncoder  # noqa: E402
from wals_spark.mlm.text_sequences import cut_documents  # noqa: E402

SPECIAL = SpecialIds(1, 2, 3, frozenset({0, 1, 2, 3}), 3000)


@pytest.fixture(scope="module")
def model():
    """A BERT of two layers and 3,000 tokens."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512}
    return BertForMaskedLM(BertConfig(vocab_size=3000, pad_token_id=0, **sizes)).eval()


@pytest.fixture(scope="module")
def sequences():
    """Text of 40 documents of 20 to 126 tokens."""
    generator = np.random.default_rng(0)
    sizes = generator.integers(20, 127, 40)
    tokens = generator.integers(4, 3000, sizes.sum()).astype(np.int32)
    return cut_documents(tokens, np.concatenate([[0], np.cumsum(sizes)]), np.arange(40, dtype=np.uint64), 128)


@pytest.mark.parametrize(("precision", "error"), [("fp32", 2e-3), ("tf32", 1e-2), ("bf16", 1e-1)])
def test_states_of_a_gpu_are_those_of_a_processor(model, sequences, precision, error):
    expected = StateEncoder(model.cpu(), SPECIAL).states(sequences, Maskings(2))
    found = StateEncoder(model.cuda(), SPECIAL, precision=precision, batch_size=32).states(sequences, Maskings(2))
    assert np.array_equal(found.target, expected.target)
    assert np.abs(found.hidden.astype(float) - expected.hidden.astype(float)).max() < error
    assert np.abs(found.base_loss - expected.base_loss).max() < error


def test_the_same_call_on_a_gpu_gives_the_same_states(model, sequences):
    encoder = StateEncoder(model.cuda(), SPECIAL)
    one, other = (encoder.states(sequences, Maskings(2)) for _ in range(2))
    assert one.hidden.tobytes() == other.hidden.tobytes()
    assert np.array_equal(one.candidates, other.candidates)
