"""The demonstration's configuration: the same as conf/demo.yaml, for any directory."""

from __future__ import annotations

import os
from typing import Any

from wals_spark.config import Config, load_config

RUN_ID = "demo"
CORPUS = "corpus.jsonl"
START = "start"
TRAINED = "trained"
WAREHOUSE = "warehouse"


def demo_config(directory: str, **keys: Any) -> Config:
    """The configuration for a directory; ``inject__mode="blend"`` and the like override."""
    flags: dict[str, Any] = {
        "warehouse": os.path.join(directory, WAREHOUSE),
        "run_id": RUN_ID,
        "corpus.path": [os.path.join(directory, CORPUS)],
        "corpus.format": "jsonl",
        "corpus.id_column": "doc_id",
        "corpus.held_out_fraction": 0.06,
        "vocabulary.kind": "tokenizer",
        "vocabulary.tokenizer": os.path.join(directory, START),
        "train.k": 128,
        "train.sweeps": 6,
        "export.formats": ["word2vec", "safetensors"],
        "inject.checkpoint": os.path.join(directory, START),
        "evaluate.sequences": 256,
        "evaluate.probe_targets": 250,
    }
    return load_config(None, (), {**flags, **{key.replace("__", "."): value for key, value in keys.items()}})
