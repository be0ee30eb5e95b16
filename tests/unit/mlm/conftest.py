"""A tiny tokenizer, corpus and model for the tests of masked language modelling."""

from __future__ import annotations

import pytest

from wals_spark.mlm.data import special_ids
from wals_spark.tokenizer import LoadedTokenizer, load_tokenizer

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "while",
    "dog",
    "ran",
    "to",
    "old",
    "house",
    "and",
    "bird",
    "sang",
    "by",
    "red",
    "river",
]


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory) -> LoadedTokenizer:
    from tokenizers import Tokenizer, models, pre_tokenizers

    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    vocabulary = {token: index for index, token in enumerate([*specials, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(specials)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return load_tokenizer(str(path))


@pytest.fixture(scope="session")
def special(tiny_tokenizer):
    return special_ids(tiny_tokenizer)


@pytest.fixture
def tiny_model():
    import torch
    from transformers import RobertaConfig, RobertaForMaskedLM

    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=5 + len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        type_vocab_size=1,
    )
    return RobertaForMaskedLM(config).eval()
