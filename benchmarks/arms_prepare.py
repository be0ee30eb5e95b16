"""The gain of injection on a domain, step 1: count, factorise, inject in every mode; write the inputs of scoring.

    python benchmarks/arms_prepare.py --domain biomedical --work DIR --output DIR [--data DIR]

The general corpus is the Wikipedia part that mini-roberta was trained on, the domain a corpus of the shared data; a
share of the domain's documents is never counted. The strengths are those that the product chooses on counted text.
`benchmarks/arms_score.py` reads the output on any machine with torch and transformers. `--work` holds the
warehouses, which a second call continues.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from arms_score import read_case, rows_of, save, save_bf16, say

from wals_spark import schemas, token_shards
from wals_spark.checkpoints import checkpoint as ckpt
from wals_spark.checkpoints.edit import TokenFactors
from wals_spark.config import Config, load_config
from wals_spark.factors.store import read_vectors
from wals_spark.inject import domain_shift, strength_search
from wals_spark.inject import prepare as preparation
from wals_spark.inject.proposal import RowProposal, adjusted_head_bias, frequency_matched_permutation, propose_rows
from wals_spark.inject.stages import SHIFT_MIN_COUNT
from wals_spark.inject.vocabulary import candidates, extend
from wals_spark.mlm.data import MaskedSequences, SpecialIds, encode, mask_tokens, pack_sequences, special_ids
from wals_spark.objective import Objective
from wals_spark.pipeline import run_stages
from wals_spark.progress import setup_logging
from wals_spark.stage import Context
from wals_spark.stage_outputs import CooccurrenceOutputs, TrainOutputs, VocabularyOutputs, require_outputs
from wals_spark.tokenizer import LoadedTokenizer, load_tokenizer

GENERAL = "general"
K = 128
LEFT_OUT = 50
"""mini-roberta has not seen every fiftieth Wikipedia article, counted from 1."""
GENERAL_CORPUS = {"held_out_fraction": 0.0, "id_column": "doc_id"}
DOMAINS: dict[str, dict[str, Any]] = {
    # ids repeat there, and so do texts, of which none may stand on both sides
    "biomedical": {"held_out_fraction": 0.05, "duplicate_texts": "near"},
    "scotus": {"held_out_fraction": 0.1, "id_column": "doc_id"},
}
LENGTH = 128
TEST_SEED = 1
TRAINING_SEQUENCES = 16_000
CHOSEN_ON = 96
"""Sequences of counted text that strengths are chosen on."""
NEW_WORDS = 1000
HALF_EXPOSURE, HEAD_BIAS, SHIFT = 100.0, 0.5, 0.25
"""What an arm takes where the choice on text was to move nothing."""
COUNTED = ("corpus", "vocabulary", "cooccurrence")


def split_general(data: Path, work: Path) -> tuple[Path, Path]:
    """The general documents that mini-roberta was trained on, and the others: two Parquet files."""
    seen, unseen = work / "general.parquet", work / "general-unseen.parquet"
    if not (seen.is_file() and unseen.is_file()):
        parts = sorted((data / "corpora" / "enwiki").glob("part-*.parquet"))
        table = pa.concat_tables([pq.read_table(part, columns=["doc_id", "text"]) for part in parts])
        last = pa.array([number % LEFT_OUT == LEFT_OUT - 1 for number in range(len(table))])
        work.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.filter(last), unseen)
        pq.write_table(table.filter(pc.invert(last)), seen)
    return seen, unseen


def configuration(
    model: Path, warehouse: Path, tokenizer: Path, domain: str, batch: str, path: Path, corpus: dict[str, Any]
) -> Config:
    """Of one batch, of the run that trains on it and the general one, and of its injection."""
    flags = {
        "warehouse": str(warehouse),
        "run_id": domain,
        "corpus.batch_id": batch,
        "corpus.path": str(path),
        **{f"corpus.{key}": value for key, value in corpus.items()},
        "vocabulary.tokenizer": str(tokenizer),
        "train.batches": [GENERAL, domain],
        "train.k": K,
        "inject.mode": "blend",
        "inject.checkpoint": str(model),
        "inject.general_batches": [GENERAL],
        "inject.strengths": "text",
        "inject.head_bias": "auto",
        "inject.head_bias_target": "domain",
        "inject.shift": "auto",
        "inject.text_sequences": CHOSEN_ON,
        "inject.gate": False,
    }
    return load_config(None, (), flags)


def count_and_factorise(data: Path, work: Path, warehouse: Path, tokenizer: Path, domain: str) -> Config:
    """Both batches counted with a tokenizer and factorised together."""
    general, _ = split_general(data, work)
    model = data / "models" / "mini-roberta"
    run_stages(configuration(model, warehouse, tokenizer, domain, GENERAL, general, GENERAL_CORPUS), COUNTED)
    path = data / "corpora" / f"{domain}.parquet"
    config = configuration(model, warehouse, tokenizer, domain, domain, path, DOMAINS[domain])
    run_stages(config, (*COUNTED, "train"))
    return config


def extended_tokenizer(work: Path, config: Config, model: Path, domain: str) -> Path:
    """mini-roberta's tokenizer with the domain's words that save most tokens appended: its directory."""
    directory = work / f"tokenizer-{domain}"
    if not (directory / "tokenizer.json").is_file():
        loaded = load_tokenizer(str(model))
        context = Context(config)
        found = candidates.split_words(candidates.count_words_of_documents(context, [domain], 20), loaded)[:NEW_WORDS]
        context.stop()
        content = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
        pieces = [[loaded.tokens[index] for index in word.pieces] for word in found]
        extended, _ = extend.extend_tokenizer(content, pieces)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "tokenizer.json").write_text(json.dumps(extended, ensure_ascii=False), encoding="utf-8")
    return directory


def proposal_of(
    config: Config, context: Context
) -> tuple[RowProposal, strength_search.Strengths, dict[str, np.ndarray]]:
    """What ``inject`` would do on this run: rows, strengths chosen on counted text, what scoring rebuilds them from."""
    opened = ckpt.open_checkpoint(str(config.inject.checkpoint))
    tokenizer = ckpt.checkpoint_tokenizer(opened.directory)
    E = ckpt.embedding_values(opened)
    protected = ckpt.protected_ids(tokenizer, opened.config, opened.vocab_size)
    vectors = read_vectors(context.tables, config.run_id, "u")
    factors = TokenFactors(vectors.matrix, vectors.counts)
    encoded_in = {b: require_outputs(context.manifests, VocabularyOutputs, b)["encoded"] for b in config.train.batches}
    text = preparation.EncodedText((encoded_in[GENERAL],), (encoded_in[config.run_id],))
    seen = preparation.token_frequencies(config, factors, tokenizer, protected, text)
    delta = differences(config, context, np.flatnonzero(seen.corpus >= SHIFT_MIN_COUNT), opened.vocab_size)
    context.stop()
    proposal = propose_rows(factors, E, protected, seen, config.inject, config.seed, delta)
    chosen = strength_search.search_strengths(config, opened, proposal, factors, special_ids(tokenizer), text.domain)
    alignment = proposal.fit.alignment
    moved = np.flatnonzero(delta.any(axis=1))
    assert proposal.shift_trust is not None
    arrays: dict[str, np.ndarray] = {
        "U": vectors.matrix.astype(np.float16),
        "W": alignment.W.astype(np.float32),
        "mu_u": alignment.mu_u.astype(np.float32),
        "mu_e": alignment.mu_e.astype(np.float32),
        "stretch": proposal.stretch,
        "delta_ids": moved.astype(np.int32),
        "delta": delta[moved].astype(np.float16),
        "delta_trust": proposal.shift_trust[moved],
        "share": proposal.shares(chosen.half_exposure or HALF_EXPOSURE),
        "everything": proposal.full_shares(),
        "permutation": frequency_matched_permutation(factors.counts, config.seed).astype(np.int32),
        "general_counts": seen.exposure.astype(np.int64),
    }
    bias = opened.tensors[str(opened.head_bias)].values()
    for name, goal, strength in (("domain", seen, chosen.head_bias or HEAD_BIAS), ("sum", seen.towards("sum"), 1.0)):
        moved_bias = adjusted_head_bias(bias, goal, protected, strength)
        arrays[f"bias_{name}"] = moved_bias.astype(np.float32)
    return proposal, chosen, arrays


def lengths(rows: np.ndarray) -> np.ndarray:
    """Euclidean length of every row, float32 (n,)."""
    return np.linalg.norm(rows, axis=1).astype(np.float32)


def differences(config: Config, context: Context, ids: np.ndarray, size: int) -> np.ndarray:
    """How the domain uses tokens differently: `wals_spark.inject.domain_shift`."""
    train = require_outputs(context.manifests, TrainOutputs, config.run_id)
    unit = require_outputs(context.manifests, CooccurrenceOutputs, GENERAL)["unit"]
    total, general = (
        domain_shift.batch_counts(context.tables, batches, size, unit) for batches in (train["batches"], [GENERAL])
    )
    V = read_vectors(context.tables, config.run_id, "v").matrix
    return domain_shift.fold_in_difference_in_spark(
        context.spark, ids, total, general, V, Objective(**train["objective"]), unit
    )


def arms_of(chosen: strength_search.Strengths) -> dict[str, dict[str, Any]]:
    """Arm -> its rows, shift and head bias."""
    moved = chosen.shift or SHIFT

    def arm(rows: str = "base", bias: str = "base", shift: float = 0.0) -> dict[str, Any]:
        return {"rows": rows, "bias": bias, "shift": shift}

    return {
        "base": arm(),
        "bias": arm(bias="domain"),
        "bias to sum": arm(bias="sum"),
        "blend": arm("blend"),
        "blend + shift": arm("blend", shift=moved),
        "blend + bias": arm("blend", "domain"),
        "blend + shift + bias": arm("blend", "domain", moved),
        "blend + shift + bias to sum": arm("blend", "sum", moved),
        "replace + bias": arm("replace", "domain"),
        "permuted": arm("permuted"),
        "permuted + bias": arm("permuted", "domain"),
        "mean row": arm("mean row"),
        "mean row + bias": arm("mean row", "domain"),
    }


EXTENDED_ARMS = {
    "extend": "factors",
    "extend, mean of subtokens": "subtokens",
    "extend, mean row": "mean",
    "extend, overlap": "overlap",
}


def extended_rows(config: Config, context: Context) -> dict[str, np.ndarray]:
    """Rows and head bias of the new tokens, every way."""
    vectors = read_vectors(context.tables, config.run_id, "u")
    arrays = {}
    for method in EXTENDED_ARMS.values():
        flags = {"mode": "extend", "extend_rows": method, "shift": 0.0, "head_bias": 0.0}
        inject = config.inject.model_copy(update=flags)
        _, change, _ = preparation.prepare_edit(config.model_copy(update={"inject": inject}), vectors)
        assert change.head_bias is not None
        arrays[f"extended_{method}"] = change.rows
        arrays["extended_bias"] = change.head_bias[change.ids].astype(np.float32)
    return arrays


def held_out(context: Context, batch: str) -> list[str]:
    """Texts of a batch's documents that were never counted."""
    frame = context.tables.read(schemas.DOCUMENTS, {"batch_id": batch}).where("held_out").orderBy("doc_id")
    return [row["text"] for row in frame.select("text").toLocalIterator()]


def training_sequences(directory: str, special: SpecialIds, seed: int) -> np.ndarray:
    """Packed sequences of a batch's counted documents, a sample, uint16 (n, 128)."""
    documents = []
    for shard in token_shards.list_shards(directory):
        for chunk in token_shards.read_shards([shard.path]):
            ends = chunk.offsets
            documents += [chunk.tokens[ends[i] : ends[i + 1]] for i in range(len(ends) - 1)]
    packed = pack_sequences([ids[ids >= 0] for ids in documents], special, LENGTH)
    chosen = np.random.default_rng([seed, 21]).permutation(len(packed))[:TRAINING_SEQUENCES]
    return packed.ids[np.sort(chosen)].astype(np.uint16)


def masked_arrays(name: str, masked: MaskedSequences) -> dict[str, np.ndarray]:
    """A `MaskedSequences` as arrays of a file."""
    return {
        f"{name}_inputs": masked.inputs.astype(np.uint16),
        f"{name}_row": masked.row.astype(np.uint16),
        f"{name}_column": masked.column.astype(np.uint8),
        f"{name}_target": masked.target.astype(np.uint16),
        f"{name}_document": masked.document,
    }


def hidden_words(
    texts: Sequence[str], tokenizers: dict[str, LoadedTokenizer], special: SpecialIds, pad: int, limit: int, seed: int
) -> dict[str, np.ndarray]:
    """Windows of whole words, 15 % of the words hidden, the same ones in every segmentation.

    A word is what the pretokenizer, which all segmentations share, leaves in one piece. Windows are cut so that the
    first segmentation, the longest, fits; the first window of every document comes before the second of any.
    """
    names = list(tokenizers)
    generator = np.random.default_rng([seed, 22])
    windows = []  # (turn, document, first word, last word)
    pieces: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in names}
    for document, text in enumerate(texts):
        for name, loaded in tokenizers.items():
            encoding = loaded.tokenizer.encode(text, add_special_tokens=False)
            owners = np.array([-1 if word is None else word for word in encoding.word_ids], np.int64)
            starts = np.searchsorted(owners, np.arange(owners.max(initial=-1) + 2))
            pieces[name].append((np.array(encoding.ids, np.int64), starts))
        starts = pieces[names[0]][document][1]
        begin, turn = 0, 0
        while begin < len(starts) - 1:
            end = int(np.searchsorted(starts, starts[begin] + LENGTH - 2, side="right")) - 1
            if end > begin:
                windows.append((turn, document, begin, end))
            begin, turn = max(end, begin + 1), turn + 1
    windows = sorted(windows)[:limit]
    rows: dict[str, list[list[int]]] = {name: [] for name in names}
    places: dict[str, list[tuple[int, int, int, int]]] = {name: [] for name in names}
    owner: list[int] = []
    new: list[bool] = []
    for number, (_, document, begin, end) in enumerate(windows):
        hidden = set(generator.choice(end - begin, max(1, round(0.15 * (end - begin))), replace=False).tolist())
        row = {name: [special.start] for name in names}
        for word in range(begin, end):
            taken = {name: pieces[name][document] for name in names}
            ids = {name: found[starts[word] : starts[word + 1]] for name, (found, starts) in taken.items()}
            if word - begin in hidden:
                for name in names:
                    at = len(row[name])
                    places[name] += [(number, at + i, int(piece), len(owner)) for i, piece in enumerate(ids[name])]
                owner.append(document)
                new.append(len(ids[names[0]]) > 1 and len(ids[names[-1]]) == 1)
            for name in names:
                row[name] += [special.mask] * len(ids[name]) if word - begin in hidden else ids[name].tolist()
        for name in names:
            row[name].append(special.end)
            rows[name].append(row[name] + [pad] * (LENGTH - len(row[name])))
    arrays = {"document": np.array(owner, np.int32), "new": np.array(new, bool)}
    for name in names:
        arrays[f"{name}_inputs"] = np.array(rows[name], np.uint16)
        for part, column in zip(("row", "column", "target", "word"), zip(*places[name], strict=True), strict=True):
            arrays[f"{name}_{part}"] = np.array(column, np.int32)
    return arrays


def write_base(model: Path, output: Path) -> None:
    """The base checkpoint, losslessly."""
    directory = output / "base"
    if not (directory / "weights.npz").is_file():
        directory.mkdir(parents=True, exist_ok=True)
        opened = ckpt.open_checkpoint(str(model))
        shutil.copyfile(model / "config.json", directory / "config.json")
        save_bf16(directory / "weights.npz", {name: tensor.values() for name, tensor in opened.tensors.items()})


def prepare(data: Path, work: Path, output: Path, domain: str, sequences: int) -> None:
    """Everything, for one domain."""
    model = data / "models" / "mini-roberta"
    config = count_and_factorise(data, work, work / "warehouse", model, domain)
    tokenizer = extended_tokenizer(work, config, model, domain)
    extended_config = count_and_factorise(data, work, work / f"warehouse-{domain}-extended", tokenizer, domain)
    context, extended_context = Context(config), Context(extended_config)
    texts = {
        "domain": held_out(context, domain),
        "general": pq.read_table(split_general(data, work)[1], columns=["text"]).column("text").to_pylist(),
    }
    proposal, chosen, arrays = proposal_of(config, context)
    loaded = {"old": load_tokenizer(str(model)), "extended": load_tokenizer(str(tokenizer))}
    special = {name: special_ids(found) for name, found in loaded.items()}
    pad = int(json.loads((model / "config.json").read_text())["pad_token_id"])
    tests: dict[str, np.ndarray] = {}
    for text, documents in texts.items():
        packed = pack_sequences(
            encode(loaded["old"], documents), special["old"], LENGTH, limit=sequences, round_robin=True
        )
        tests.update(masked_arrays(f"test_{text}", mask_tokens(packed, special["old"], 0.15, TEST_SEED)))
        found = hidden_words(documents, loaded, special["old"], pad, sequences, TEST_SEED)
        tests.update({f"words_{text}_{name}": values for name, values in found.items()})
    packed = pack_sequences(
        encode(loaded["extended"], texts["domain"]), special["extended"], LENGTH, limit=64, round_robin=True
    )
    tests.update(masked_arrays("test_extended", mask_tokens(packed, special["extended"], 0.15, TEST_SEED)))
    training = {
        f"training_{name}": training_sequences(
            require_outputs(each.manifests, VocabularyOutputs, domain)["encoded"], special[name], 1
        )
        for name, each in (("old", context), ("extended", extended_context))
    }
    directory = output / domain
    directory.mkdir(parents=True, exist_ok=True)
    save(directory / "rows.npz", arrays)
    save(directory / "extended.npz", extended_rows(extended_config, extended_context))
    save(directory / "text.npz", {**tests, **training})
    write_base(model, output)
    facts = {
        "domain": domain,
        "size": special["old"].size,
        "extended_size": special["extended"].size,
        "special": {
            "start": special["old"].start, "end": special["old"].end, "mask": special["old"].mask, "pad": pad,
            "all": sorted(special["old"].all),
        },
        "arms": arms_of(chosen),
        "extended_arms": {
            "base": arms_of(chosen)["base"],
            **{name: {"extended": f"extended_{method}"} for name, method in EXTENDED_ARMS.items()},
        },
        "told": {
            "domain": domain, "k": K, "strengths": {"half_exposure": chosen.half_exposure,
            "head_bias": chosen.head_bias, "shift": chosen.shift}, "chosen_on": chosen.facts,
            "gate": proposal.fit.gate.r2, "new_tokens": special["extended"].size - special["old"].size,
            "training_sequences": [len(values) for values in training.values()],
            "test_documents": {text: len(documents) for text, documents in texts.items()},
        },
    }  # fmt: skip
    (directory / "facts.json").write_text(json.dumps(facts, indent=1))
    report_rounding(directory, proposal, chosen)


def report_rounding(directory: Path, proposal: RowProposal, chosen: strength_search.Strengths) -> None:
    """Say how far the rows that scoring rebuilds from 16-bit factors are from those that ``inject`` would write."""
    case = read_case(directory)
    E = case.base["roberta.embeddings.word_embeddings.weight"]
    rebuilt = rows_of(case.facts["arms"]["blend + shift"], E, case.arrays)
    ids, rows = proposal.rows(E, case.arrays["share"], shift=chosen.shift or SHIFT)
    worst = float((lengths(rebuilt[ids] - rows) / np.maximum(lengths(rows), 1e-12)).max())
    size = {path.name: path.stat().st_size for path in sorted(directory.iterdir())}
    size["base"] = (directory.parent / "base" / "weights.npz").stat().st_size
    say(benchmark="arms", case="prepared", worst_relative_row_difference=worst, bytes=size, **case.facts["told"])


def main() -> int:
    """Run the benchmark's first step."""
    shared = Path(os.environ.get("WALS_SPARK_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domain", choices=sorted(DOMAINS), required=True)
    parser.add_argument("--work", type=Path, required=True, help="where the warehouses are, or are to be made")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=shared)
    parser.add_argument("--sequences", type=int, default=400, help="of each text, that losses are measured on")
    options = parser.parse_args()
    setup_logging()
    prepare(options.data, options.work, options.output, options.domain, options.sequences)
    return 0


if __name__ == "__main__":
    sys.exit(main())
