"""The checkpoint before and after an injection, on the same masks of documents that were held out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from wals_spark import schemas, storage
from wals_spark.config import Config
from wals_spark.errors import InputError
from wals_spark.evaluate.masked_lm import POOL, MaskedLmResult, evaluate_masked_lm, make_masked_lm_task
from wals_spark.mlm.data import encode, pack_sequences, special_ids
from wals_spark.mlm.loss import load_masked_lm, masked_lm_from_config
from wals_spark.runs import ManifestStore
from wals_spark.stage import Context
from wals_spark.tokenizer import load_tokenizer

BEFORE, AFTER = "before", "after"
"""Names of the two checkpoints among the arms of the comparison."""


def trained_batches(config: Config, manifests: ManifestStore) -> list[str]:
    """The batches whose held-out documents are used: those that were trained on."""
    return manifests.keys("corpus") if "all" in config.train.batches else list(config.train.batches)


def compares_models(config: Config) -> bool:
    """Whether there are two checkpoints of one vocabulary: losses over different tokens are no comparison."""
    return config.inject.mode not in ("none", "extend", "trim", "transfer") and config.evaluate.masked_lm


def held_out_texts(context: Context, limit: int) -> list[str]:
    """Texts of at most `limit` held-out documents: those with the smallest hash of their id, in that order.

    Raises
    ------
    InputError
        There are none.
    """
    from pyspark.sql import functions as F

    chosen = []
    for batch in trained_batches(context.config, context.manifests):
        frame = context.tables.read(schemas.DOCUMENTS, {"batch_id": batch}).where("held_out")
        keyed = frame.select(F.xxhash64(F.lit(context.config.seed), "doc_id").alias("key"), "doc_id", "text")
        chosen += keyed.orderBy("key", "doc_id").limit(limit).collect()
    chosen.sort(key=lambda row: (row["key"], row["doc_id"]))
    if not chosen:
        raise InputError(
            "no document was held out for the evaluation: the corpus is small for corpus.held_out_fraction "
            f"{context.config.corpus.held_out_fraction}; raise it, or set evaluate.masked_lm to false"
        )
    return [row["text"] for row in chosen[:limit]]


def compare_models(context: Context, counts: np.ndarray, injected: str) -> MaskedLmResult:
    """The checkpoint before and after injection, on the same held-out masks.

    Parameters
    ----------
    context : Context
    counts : int64 array of shape (V,)
        Of the tokens in the text that was counted.
    injected : str
        The directory of the checkpoint after injection.

    Raises
    ------
    InputError
        No document was held out, or they do not fill one sequence.
    """
    config, section = context.config, context.config.evaluate
    assert config.vocabulary.tokenizer is not None
    assert config.inject.checkpoint is not None
    before = config.inject.checkpoint
    loaded = load_tokenizer(config.vocabulary.tokenizer)
    special = special_ids(loaded)
    encoded = encode(loaded, held_out_texts(context, section.documents))
    pool = pack_sequences(encoded, special, section.sequence_length, limit=POOL * section.sequences, round_robin=True)
    if len(pool) == 0:
        raise InputError(
            f"{len(encoded)} held-out documents with {sum(map(len, encoded)):,} tokens do not fill one sequence of "
            f"{section.sequence_length}: lower evaluate.sequence_length or raise corpus.held_out_fraction"
        )
    task = make_masked_lm_task(
        pool,
        special,
        counts,
        config.seed,
        sequences=section.sequences,
        mask_fraction=section.mask_fraction,
        probe_targets=section.probe_targets,
    )
    after = storage.local_path(injected)
    fresh = config.inject.mode == "init"
    models: dict[str, Callable[[], Any]] = {
        BEFORE: partial(masked_lm_from_config, before, config.seed) if fresh else partial(load_masked_lm, before),
        AFTER: partial(load_masked_lm, after),
        **{name: partial(load_masked_lm, path) for name, path in section.checkpoints.items()},
    }
    return evaluate_masked_lm(
        task, models, resamples=section.bootstrap, seed=config.seed, batch_size=section.batch_size
    )
