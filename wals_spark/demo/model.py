"""The demonstration's tokenizer and model: byte-level BPE of 8,192 and a RoBERTa of 4 x 192."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

VOCABULARY = 8_192
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
LENGTH = 128
LAYERS, WIDTH, HEADS = 4, 192, 4


def train_tokenizer(texts: Iterable[str], directory: str, size: int) -> None:
    """Train the tokenizer and save it as transformers does: ``tokenizer.json`` and its configuration."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, lstrip=token == "<mask>", normalized=False, special=True) for token in SPECIAL]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=LENGTH,
    )
    os.makedirs(directory, exist_ok=True)
    wrapped.save_pretrained(directory)


def model_config(size: int) -> Any:
    """The model's configuration; no dropout, since it never sees a text twice."""
    from transformers import RobertaConfig

    return RobertaConfig(
        architectures=["RobertaForMaskedLM"],
        vocab_size=size,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        max_position_embeddings=LENGTH + 2,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )
