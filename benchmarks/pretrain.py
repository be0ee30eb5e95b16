"""Masked-LM loss against steps from four starts: random weights, head bias alone, permuted factors, factors.

The question of ``inject --mode init``: are rows from factors worth anything to a model about to be pretrained, beyond
what the head bias alone gives? In a seed every arm has the same layers and sees the same batches with the same
masks. `permuted` has the factors' rows at other tokens of the same frequency decile: norms and frequency stay,
meaning goes.

    python benchmarks/pretrain.py [--corpus 'FILES'] [--tokenizer DIR]      counts and factorises first
    python benchmarks/pretrain.py --warehouse DIR --run-id ID --tokenizer DIR     takes the factors of a run

One JSON line per arm, seed and measured step, then one per pair of arms: the difference after the last step with
its 95 % interval over seeds and documents (two-level bootstrap). Held-out documents are neither counted nor trained on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from transformers import RobertaConfig, RobertaForMaskedLM

from wals_spark import schemas, storage
from wals_spark.config import Config, load_config
from wals_spark.factors.store import Vectors, read_vectors
from wals_spark.inject.align import deciles, permute_within
from wals_spark.inject.frequency import log_unigram
from wals_spark.inject.initial_rows import initial_embedding_rows
from wals_spark.mlm.data import SpecialIds, encode, mask_tokens, pack_sequences, special_ids
from wals_spark.mlm.loss import best_device
from wals_spark.mlm.pretrain import Schedule, evaluation_steps, pretrain
from wals_spark.mlm.statistics import two_level_bootstrap
from wals_spark.pipeline import run_stages
from wals_spark.progress import setup_logging
from wals_spark.stage import Context
from wals_spark.tokenizer import LoadedTokenizer, load_tokenizer

ARMS = ("random", "head_bias", "permuted", "factors")
PAIRS = (("factors", "random"), ("factors", "head_bias"), ("factors", "permuted"), ("permuted", "head_bias"))
UNSEEN_SEED = 1
RESAMPLES = 10_000


def configuration(options: argparse.Namespace) -> Config:
    """Of the run whose factors are used."""
    data = Path(os.environ.get("WALS_SPARK_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    flags = {
        "warehouse": options.warehouse or "build/pretrain",
        "run_id": options.run_id,
        "corpus.path": options.corpus or str(data / "corpora" / "enwiki" / "*.parquet"),
        "corpus.id_column": "doc_id",
        "vocabulary.tokenizer": options.tokenizer or str(data / "tokenizers" / "roberta-base"),
        "train.k": options.k,
    }
    return load_config(None, (), flags)


def texts(context: Context) -> tuple[list[str], list[str]]:
    """Documents to train on, and held-out ones, by id."""
    rows: list[dict[str, Any]] = []
    for data_file in context.tables.files(schemas.DOCUMENTS, {"batch_id": context.config.corpus.batch_id}):
        fs, path = storage.filesystem(data_file.path)
        with fs.open_input_file(path) as source:
            rows += pq.ParquetFile(source).read(columns=["doc_id", "text", "held_out"]).to_pylist()
    rows.sort(key=lambda row: row["doc_id"])
    return [r["text"] for r in rows if not r["held_out"]], [r["text"] for r in rows if r["held_out"]]


def start(arm: str, options: argparse.Namespace, vectors: Vectors, special: SpecialIds, seed: int) -> Any:
    """The model of an arm before its first step."""
    config = RobertaConfig(
        vocab_size=len(vectors.tokens),
        hidden_size=options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=4,
        intermediate_size=4 * options.width,
        max_position_embeddings=options.length + 2,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(seed)
    model = RobertaForMaskedLM(config)
    if arm == "random":
        return model
    with torch.no_grad():
        model.lm_head.bias.copy_(torch.from_numpy(log_unigram(vectors.counts)).float())
        if arm in ("permuted", "factors"):
            rows = initial_embedding_rows(vectors.matrix, vectors.counts, options.width, config.initializer_range, seed)
            if arm == "permuted":
                rows = rows[permute_within(deciles(vectors.counts), seed)]
            seen = np.nonzero((vectors.counts > 0) & ~np.isin(np.arange(len(rows)), list(special.all)))[0]
            model.get_input_embeddings().weight[torch.from_numpy(seen)] = torch.from_numpy(rows[seen])
    return model


def say(**facts: Any) -> None:
    """Print a JSON line."""
    print(json.dumps(facts), flush=True)


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", help="Parquet files with doc_id and text; default: enwiki of the shared data")
    parser.add_argument("--tokenizer", help="default: roberta-base of the shared data")
    parser.add_argument("--warehouse", help="of a run that is there already")
    parser.add_argument("--run-id", default="pretrain")
    parser.add_argument("--k", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--points", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--unseen", type=int, default=128, help="sequences that the loss is measured on")
    parser.add_argument("--arms", default=",".join(ARMS))
    options = parser.parse_args()
    setup_logging()
    config = configuration(options)
    if options.warehouse is None:
        run_stages(config, ("corpus", "vocabulary", "cooccurrence", "train"))
    context = Context(config)
    vectors = read_vectors(context.tables, config.run_id)
    loaded: LoadedTokenizer = load_tokenizer(str(config.vocabulary.tokenizer))
    special = special_ids(loaded)
    seen, held_out = texts(context)
    train = pack_sequences(encode(loaded, seen), special, options.length)
    pool = pack_sequences(encode(loaded, held_out), special, options.length, limit=options.unseen, round_robin=True)
    unseen = mask_tokens(pool, special, 0.15, UNSEEN_SEED)
    schedule = Schedule(options.steps, options.batch, options.rate)
    eval_steps = evaluation_steps(options.steps, options.points)
    arms = options.arms.split(",")
    last: dict[str, list[np.ndarray]] = {arm: [] for arm in arms}
    facts = {"steps": options.steps, "tokens_per_step": options.batch * options.length, "documents": pool.documents}
    for seed in range(1, options.seeds + 1):
        for arm in arms:
            model = start(arm, options, vectors, special, seed).to(best_device())
            curve = pretrain(
                model, train, special, schedule, seed, unseen=unseen, eval_steps=eval_steps, label=f"{arm}, seed {seed}"
            )
            last[arm].append(curve.nll[-1])
            for step, nll in zip(curve.steps, curve.nll, strict=True):
                say(arm=arm, seed=seed, step=step, loss=round(float(nll.mean()), 4))
    for after, before in PAIRS:
        if after in last and before in last:
            nats = two_level_bootstrap(np.stack(last[after]), np.stack(last[before]), unseen.document, RESAMPLES, 0)
            say(
                difference=f"{after} - {before}",
                nats=round(nats.value, 4),
                low=round(nats.low, 4),
                high=round(nats.high, 4),
                seeds=options.seeds,
                targets=len(unseen),
                **facts,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
