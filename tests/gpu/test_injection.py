"""The arms of the injection benchmark on a GPU; needs neither Spark nor Java."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("torch finds no GPU", allow_module_level=True)

from transformers import BertConfig, BertForMaskedLM  # noqa: E402  # after the skip

from wals_spark.mlm.data import SpecialIds  # noqa: E402
from wals_spark.mlm.text_sequences import cut_documents  # noqa: E402

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks" / "gpu"))
from injection_arms import Comparison, Setting, parse_arm  # noqa: E402
from injection_text import GENERAL, SplitText  # noqa: E402

SPECIAL = SpecialIds(1, 2, 3, frozenset({0, 1, 2, 3}), 500)


def sequences(documents, seed):
    """Random text, sequences of 32 tokens."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(20, 60, documents)
    tokens = generator.zipf(1.5, sizes.sum()).clip(1, 490).astype(np.int32) + 4
    keys = generator.integers(0, 2**63, documents).astype(np.uint64)
    return cut_documents(tokens, np.concatenate([[0], np.cumsum(sizes)]), keys, 32)


@pytest.fixture(scope="module")
def gains():
    """Gains of an arm on a device, both texts."""
    texts = {
        name: SplitText(sequences(80, seed), sequences(20, 9 + seed), {}) for seed, name in ((0, "a"), (1, GENERAL))
    }

    def compute(name, device, **setting):
        torch.manual_seed(0)
        sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
        chances = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        model = BertForMaskedLM(BertConfig(vocab_size=500, pad_token_id=0, **sizes, **chances)).eval().to(device)
        comparison = Comparison(model, texts, Setting(SPECIAL, np.arange(4), 64, **setting))
        (line,) = comparison.lines(parse_arm(name), ["a"], 0, 2)
        return np.array([line["gain"]["value"], line["general"]["value"]])

    return compute


@pytest.mark.parametrize("arm", ["bias", "fit-2", "embeddings-1", "full-1"])
def test_an_arm_gains_on_a_gpu_what_it_gains_on_a_processor(gains, arm):
    assert np.abs(gains(arm, "cuda") - gains(arm, "cpu")).max() < 5e-3


def test_mixed_precision_trains_as_float32_does(gains):
    assert np.abs(gains("full-1", "cuda", bf16_training=True) - gains("full-1", "cuda")).max() < 2e-2
