"""A whole new tokenizer, step 1: a domain tokenizer, and factors counted with it.

    python benchmarks/transfer_prepare.py --work DIR [--data DIR] [--model DIR] [--size 16384]

A tokenizer of the model's kind (byte-level BPE, or WordPiece) is trained by the tokenizers library on the biomedical
documents that are counted; a share of the documents is held out by hash. Both the domain and one part of Wikipedia are
counted with it and factorised together. `benchmarks/transfer.py` scores what mode ``transfer`` makes of them; a second
call continues.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer, models, trainers

from wals_spark import schemas
from wals_spark.config import Config, load_config
from wals_spark.pipeline import run_stages
from wals_spark.progress import setup_logging
from wals_spark.stage import Context

DOMAIN, GENERAL = "domain", "general"
K = 128
COUNTED = ("corpus", "vocabulary", "cooccurrence")


def configuration(data: Path, work: Path, model: Path, batch: str) -> Config:
    """Of one batch, and of the run that trains on both and the transfer after it."""
    paths = {DOMAIN: data / "corpora" / "biomedical.parquet", GENERAL: data / "corpora" / "enwiki" / "part-0.parquet"}
    own: dict[str, dict[str, Any]] = {DOMAIN: {"duplicate_texts": "exact"}, GENERAL: {"id_column": "doc_id"}}
    flags = {
        "warehouse": str(work / "warehouse"),
        "run_id": "transfer",
        "corpus.batch_id": batch,
        "corpus.path": str(paths[batch]),
        "corpus.held_out_fraction": 0.05,
        **{f"corpus.{key}": value for key, value in own[batch].items()},
        "vocabulary.tokenizer": str(work / "tokenizer"),
        "train.batches": [GENERAL, DOMAIN],
        "train.k": K,
        "inject.checkpoint": str(model),
    }
    return load_config(None, (), flags)


def write_documents(config: Config, work: Path, batch: str) -> None:
    """Texts of a batch's documents by id, those that are counted and those that are held out."""
    context = Context(config)
    frame = context.tables.read(schemas.DOCUMENTS, {"batch_id": batch}).orderBy("doc_id")
    table = pa.Table.from_pylist([row.asDict() for row in frame.select("text", "held_out").toLocalIterator()])
    pq.write_table(table, work / f"{batch}.parquet")
    context.stop()


def documents(work: Path, batch: str, *, held_out: bool) -> list[str]:
    """Texts of a batch's documents that are counted, or held out, in the order of their ids."""
    rows = pq.read_table(work / f"{batch}.parquet").to_pylist()
    return [row["text"] for row in rows if row["held_out"] == held_out]


def train_tokenizer(model: Path, texts: list[str], size: int) -> str:
    """A tokenizer as the model's, with another vocabulary: tokenizer.json."""
    content = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_str(json.dumps(content))
    special = [added["content"] for added in content["added_tokens"]]
    if "merges" in content["model"]:
        alphabet = sorted(token for token in content["model"]["vocab"] if len(token) == 1)
        tokenizer.model = models.BPE(unk_token=None)
        trainer: Any = trainers.BpeTrainer(
            vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    else:
        tokenizer.model = models.WordPiece(unk_token="[UNK]")
        trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(_lines(texts), trainer)
    written: dict[str, Any] = json.loads(tokenizer.to_str())
    _renumber(written.get("post_processor"), {token: index for index, token in enumerate(special)})
    return json.dumps(written, ensure_ascii=False)


def _lines(texts: list[str]) -> Iterator[str]:
    for text in texts:
        yield from text.splitlines(keepends=True)


def _renumber(processor: Any, ids: dict[str, int]) -> None:
    """The ids of special tokens in a post-processor."""
    if isinstance(processor, dict):
        for end in ("sep", "cls"):
            if end in processor:
                processor[end] = [processor[end][0], ids[processor[end][0]]]
        for token, special in (processor.get("special_tokens") or {}).items():
            special["ids"] = [ids[token]]


def main() -> None:
    """Make the tokenizer, count and factorise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model", type=Path, help="default: mini-roberta of the data")
    parser.add_argument("--size", type=int, default=16_384, help="tokens of the new tokenizer")
    options = parser.parse_args()
    setup_logging()
    model = options.model or options.data / "models" / "mini-roberta"
    config = configuration(options.data, options.work, model, DOMAIN)
    general = configuration(options.data, options.work, model, GENERAL)
    for each in (config, general):
        run_stages(each, ("corpus",))
        if not (options.work / f"{each.corpus.batch_id}.parquet").is_file():
            write_documents(each, options.work, each.corpus.batch_id)
    target = options.work / "tokenizer" / "tokenizer.json"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(
            train_tokenizer(model, documents(options.work, DOMAIN, held_out=False), options.size), encoding="utf-8"
        )
    run_stages(general, COUNTED)
    run_stages(config, (*COUNTED, "train"))


if __name__ == "__main__":
    main()
