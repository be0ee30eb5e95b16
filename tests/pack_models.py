"""Small bases and domain packs in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

EMBEDDING, BIAS = "bert.embeddings.word_embeddings.weight", "cls.predictions.bias"
PROTECTED = (0, 1)
DESCRIBED = {"mode": "blend", "parameters": {"seed": 0}, "factors": None, "run": {"run_id": "r"}}


def tokenizer_file(directory: Path) -> Path:
    """A tokenizer of 6 words."""
    from tokenizers import Tokenizer, models

    path = directory / "tokenizer.json"
    if not path.is_file():
        words = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "a", "b", "c", "d"])}
        Tokenizer(models.WordLevel(words, "[UNK]")).save(str(path))
    return path


def memory_base(
    directory: Path, size: int = 12, width: int = 4, dtype: str = "F32", seed: int = 0, scale: float = 1.0
) -> Any:
    """A base with an embedding (size, width), a head bias and another tensor."""
    from wals_spark.checkpoints.edit import BaseCheckpoint
    from wals_spark.checkpoints.raw_tensor import from_values

    generator = np.random.default_rng(seed)
    tensors = {
        EMBEDDING: from_values((scale * generator.standard_normal((size, width))).astype(np.float32), dtype),
        BIAS: from_values(generator.standard_normal(size).astype(np.float32), dtype),
        "bert.pooler.dense.bias": from_values(generator.standard_normal(width).astype(np.float32), dtype),
    }
    return BaseCheckpoint(
        tensors=tensors,
        dropped=(),
        metadata={},
        config={"architectures": ["BertForMaskedLM"]},
        embedding=EMBEDDING,
        head_bias=BIAS,
        protected=np.array(PROTECTED),
        files=(tokenizer_file(directory),),
        texts={},
        source={"source": "base", "hub": False},
    )


def moved_by(base: Any, ids: Any, by: Any, bias: Any = None) -> Any:
    """An edit that adds `by` (n, d) to rows `ids` and `bias` (V,) to the head bias."""
    from wals_spark.checkpoints.edit import EmbeddingEdit

    ids = np.asarray(ids, np.int64)
    old = base.tensors[EMBEDDING].values().astype(np.float64)
    b0 = base.tensors[BIAS].values().astype(np.float64)
    rows = (old[ids] + np.asarray(by, np.float64).reshape(len(ids), old.shape[1])).astype(np.float32)
    return EmbeddingEdit(ids, rows, None if bias is None else b0 + bias, np.ones(len(old), np.float32), {})


def small_pack(base: Any, seed: int = 0, dtype: str = "int8", rows: int = 5, scale: float = 0.1) -> Any:
    """A pack of random differences on random rows of a base."""
    from wals_spark.checkpoints.pack_making import pack_of_edit

    generator = np.random.default_rng(seed)
    size, width = base.tensors[EMBEDDING].shape
    free = np.setdiff1d(np.arange(size), PROTECTED)
    ids = np.sort(generator.permutation(free)[:rows])
    bias = np.where(generator.random(size) < 0.5, generator.standard_normal(size), 0.0)
    edit = moved_by(base, ids, scale * generator.standard_normal((len(ids), width)), bias)
    return pack_of_edit(base, edit, dtype, DESCRIBED)
