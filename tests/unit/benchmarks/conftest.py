"""The scripts of benchmarks/gpu as modules, and texts of a tiny model for them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from wals_spark.mlm.text_sequences import cut_documents

SCRIPTS = Path(__file__).resolve().parents[3] / "benchmarks" / "gpu"
if str(SCRIPTS) not in sys.path:
    sys.path.append(str(SCRIPTS))


@pytest.fixture
def make_sequences():
    """Random text of the tiny tokenizer: `make_sequences(documents, seed)`, sequences of 20 tokens."""

    def make(documents, seed, words=(5, 23)):
        generator = np.random.default_rng(seed)
        sizes = generator.integers(20, 50, documents)
        tokens = generator.integers(*words, sizes.sum()).astype(np.int32)
        keys = generator.integers(0, 2**63, documents).astype(np.uint64)
        return cut_documents(tokens, np.concatenate([[0], np.cumsum(sizes)]), keys, 20)

    return make


@pytest.fixture
def checkpoint(tmp_path, tiny_model, tiny_tokenizer):
    """The tiny model as a checkpoint with its tokenizer."""
    directory = tmp_path / "tiny"
    tiny_model.save_pretrained(directory)
    tiny_tokenizer.tokenizer.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture
def texts(tmp_path, make_sequences):
    """Files of token ids of two domains and of general text."""
    from injection_text import SplitText, write_split

    directory = tmp_path / "texts"
    directory.mkdir()
    for seed, name in enumerate(("one", "two", "general")):
        words = (5 + 3 * seed, 14 + 3 * seed)
        text = SplitText(make_sequences(30, seed, words), make_sequences(8, 10 + seed, words), {"length": "20"})
        write_split(directory / f"{name}.safetensors", text)
    return directory
