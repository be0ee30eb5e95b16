"""Injection measured: speed at roberta-base size, and masked-LM loss of every arm on a domain's unseen text.

``python benchmarks/injection.py speed`` makes a random checkpoint of roberta-base's shape and factors of k = 128,
aligns, replaces every row, writes and verifies (reload in a fresh process included).

``python benchmarks/injection.py arms --data DIR --warehouse W --run-id R --domain biomedical`` takes the factors of
a run that was trained on a batch ``general`` and a batch named as the domain (see docs/injection.md for the
commands), and scores the base and every arm on held-out documents of both with the same masks. ``--steps 25,100``
continues pretraining of every arm on the same batches with the same masks. One JSON line per measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

VOCABULARY, WIDTH, LAYERS, K = 50265, 768, 12, 128


def emit(case: str, **figures: Any) -> None:
    """One JSON line."""
    print(json.dumps({"benchmark": "injection", "case": case, **figures}), flush=True)


@contextmanager
def timed(times: dict[str, float], name: str) -> Iterator[None]:
    """Seconds of a block."""
    started = time.perf_counter()
    yield
    times[name] = round(time.perf_counter() - started, 2)


def random_checkpoint(directory: Path, tokenizer: Path) -> None:
    """A checkpoint of roberta-base's shape; only its size matters here."""
    from wals_spark.inject.rawtensor import as_mapping, write_safetensors

    generator = np.random.default_rng(0)

    def tensor(*shape: int) -> np.ndarray:
        return (generator.standard_normal(shape, dtype=np.float32) * 0.02).astype(np.float32)

    config = {
        "architectures": ["RobertaForMaskedLM"], "model_type": "roberta", "vocab_size": VOCABULARY,
        "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 12, "intermediate_size": 4 * WIDTH,
        "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1,
        "bos_token_id": 0, "eos_token_id": 2, "tie_word_embeddings": True, "dtype": "float32",
    }  # fmt: skip
    tensors = {
        "roberta.embeddings.word_embeddings.weight": tensor(VOCABULARY, WIDTH),
        "roberta.embeddings.position_embeddings.weight": tensor(514, WIDTH),
        "roberta.embeddings.token_type_embeddings.weight": tensor(1, WIDTH),
        "lm_head.bias": tensor(VOCABULARY),
        "lm_head.dense.weight": tensor(WIDTH, WIDTH),
        "lm_head.dense.bias": tensor(WIDTH),
    }
    names = {"roberta.embeddings.LayerNorm", "lm_head.layer_norm"}
    for layer in range(LAYERS):
        prefix = f"roberta.encoder.layer.{layer}"
        for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            tensors[f"{prefix}.{part}.weight"], tensors[f"{prefix}.{part}.bias"] = tensor(WIDTH, WIDTH), tensor(WIDTH)
        tensors[f"{prefix}.intermediate.dense.weight"] = tensor(4 * WIDTH, WIDTH)
        tensors[f"{prefix}.intermediate.dense.bias"] = tensor(4 * WIDTH)
        tensors[f"{prefix}.output.dense.weight"] = tensor(WIDTH, 4 * WIDTH)
        tensors[f"{prefix}.output.dense.bias"] = tensor(WIDTH)
        names |= {f"{prefix}.attention.output.LayerNorm", f"{prefix}.output.LayerNorm"}
    for name in names:
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = np.ones(WIDTH, np.float32), np.zeros(WIDTH, np.float32)
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    write_safetensors(directory / "model.safetensors", as_mapping(tensors.items()), {})


def speed(data: Path) -> None:
    """Align, blend, write and verify at roberta-base size."""
    from wals_spark.config import load_config
    from wals_spark.factors.store import Vectors
    from wals_spark.inject import place, writer
    from wals_spark.inject.checkpoint import embedding_values, open_checkpoint
    from wals_spark.inject.make import prepare
    from wals_spark.inject.verify import verify
    from wals_spark.tokenizer import load_tokenizer

    with tempfile.TemporaryDirectory() as name:
        base, out = Path(name) / "base", Path(name) / "out"
        command = [sys.executable, __file__, "checkpoint", "--data", str(data), "--output", str(base)]
        subprocess.run(command, check=True)  # in a process of its own, so that its memory is not counted
        tokens = load_tokenizer(str(base)).tokens
        generator = np.random.default_rng(1)
        E = embedding_values(open_checkpoint(str(base)))
        U = (E @ generator.standard_normal((WIDTH, K), dtype=np.float32)).astype(np.float32)
        counts = (1e7 / (np.arange(VOCABULARY) + 3)).astype(np.int64)
        del E
        vectors = Vectors(list(tokens), counts, U, np.zeros(VOCABULARY, np.float32))
        flags = {"inject.mode": "replace", "inject.checkpoint": str(base), "inject.strengths": "fitted"}
        config = load_config(None, (), {**flags, "inject.exposure": "corpus", "inject.head_bias": 0.5})
        times: dict[str, float] = {}
        with timed(times, "align_and_blend"):
            prepared, change, factors = prepare(config, vectors)
        described = {"mode": "replace", "parameters": {"seed": 1, **config.inject.result_keys()}, "factors": None}
        with timed(times, "write"), place.staged_directory(str(out), replace=False) as staging:
            writer.write(staging, prepared, change, factors, described)
        changed = len(change.ids)
        del prepared, change, factors, vectors, U  # a stage of its own: verify starts with nothing in memory
        with timed(times, "verify"):
            report = verify(out, str(base))
        size = (base / "model.safetensors").stat().st_size
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        emit(
            "speed", seconds=times, total_s=round(sum(times.values()), 2), verified=report.passed,
            checkpoint_bytes=size, peak_over_checkpoint=round(peak / size, 2),
            rows_changed=changed, load=os.getloadavg()[0],
        )  # fmt: skip


def arms(arguments: argparse.Namespace) -> None:
    """Every arm on unseen text of the domain and of the general corpus."""
    from wals_spark.config import load_config
    from wals_spark.factors.store import read_vectors
    from wals_spark.inject import align, make, methods, shift
    from wals_spark.inject.checkpoint import checkpoint_tokenizer, embedding_values, open_checkpoint, protected_ids
    from wals_spark.mlm.data import mask, pack, special_ids
    from wals_spark.mlm.loss import load_masked_lm, score
    from wals_spark.mlm.pretrain import Schedule, pretrain
    from wals_spark.mlm.statistics import Clusters
    from wals_spark.objective import Objective
    from wals_spark.stage import Context

    source = str(arguments.data / "models" / "mini-roberta")
    flags = {"warehouse": arguments.warehouse, "run_id": arguments.run_id, "inject.mode": "blend"}
    config = load_config(None, (), {**flags, "inject.checkpoint": source, "inject.general_batches": ["general"]})
    context = Context(config)
    opened = open_checkpoint(source)
    tokenizer = checkpoint_tokenizer(opened.directory)
    special, E = special_ids(tokenizer), embedding_values(opened)
    protected = protected_ids(tokenizer, opened.config, opened.size)
    vectors = read_vectors(context.tables, arguments.run_id, "u")
    factors = methods.Factors(vectors.matrix, vectors.counts)
    manifests = context.manifests
    directories = {b: manifests.require("vocabulary", b).outputs["encoded"] for b in ("general", arguments.domain)}
    text = make.Text((directories["general"],), (directories[arguments.domain],))
    frequencies = make.frequencies(config, factors, tokenizer, protected, text)
    train = manifests.require("train", arguments.run_id).outputs
    unit = int(manifests.require("cooccurrence", "general").outputs["unit"])
    counted = [shift.counts_of(context.tables, b, opened.size, unit) for b in (train["batches"], ["general"])]
    V = read_vectors(context.tables, arguments.run_id, "v").matrix
    ids = np.flatnonzero(frequencies.corpus >= 5)
    delta = shift.differences(context.spark, ids, counted[0], counted[1], V, Objective(**train["objective"]), unit)
    proposal = methods.propose(factors, E, protected, frequencies, config.inject, arguments.seed, delta)
    bias = opened.tensors["lm_head.bias"].values()
    documents = {batch: held_out(context, tokenizer, batch) for batch in ("general", arguments.domain)}
    context.stop()
    tests = {
        batch: mask(pack(found, special, 128, limit=arguments.sequences, fair=True), special, 0.15, 1)
        for batch, found in documents.items()
    }
    share = proposal.shares(arguments.half_exposure)
    mean = np.repeat(proposal.fit.alignment.mu_e.astype(np.float32)[None], len(share), axis=0)
    shuffled = proposal.P[align.permute_within(align.deciles(factors.counts), arguments.seed)]

    def moved(target: str, strength: float) -> np.ndarray:
        return methods.moved_head_bias(bias, frequencies.towards(target), protected, strength)

    rows = {
        "": None,
        "blend": proposal.rows(E, share),
        "blend + shift": proposal.rows(E, share, shift=arguments.shift),
        "replace": proposal.rows(E, proposal.everything()),
        "permuted": proposal.rows(E, share, P=shuffled),
        "mean row": proposal.rows(E, share, P=mean),
    }
    biases = {"": None, "bias to sum": moved("sum", 1.0), "half-way bias": moved("domain", 0.5)}
    training = None
    base: dict[str, np.ndarray] = {}
    for row_arm, changed in rows.items():
        for bias_arm, new_bias in biases.items():
            if row_arm in ("replace", "permuted", "mean row") and bias_arm:
                continue
            arm = " + ".join(part for part in (row_arm, bias_arm) if part) or "base"
            model = load_masked_lm(source)
            put(model, changed, new_bias)
            for steps in (0, *arguments.steps):
                if steps:
                    if training is None:
                        training = training_sequences(directories[arguments.domain], special)
                    model = load_masked_lm(source)
                    put(model, changed, new_bias)
                    pretrain(model, training, special, Schedule(steps, 32, 3e-4), arguments.seed)
                for batch, masked in tests.items():
                    nll = score(model, masked, batch_size=32).nll
                    base.setdefault(f"{batch}{steps}", nll)
                    clusters = Clusters(masked.document, 1000, 1)
                    gain = clusters.difference(base[f"{batch}{steps}"], nll)
                    seen = frequencies.exposure[masked.target]
                    rare = (seen >= 10) & (seen < 30)
                    emit(
                        "arm", domain=arguments.domain, text=batch, arm=arm, steps=steps, seed=arguments.seed,
                        nats=round(float(nll.mean()), 4), gain=round(gain.value, 4),
                        gain_low=round(gain.low, 4), gain_high=round(gain.high, 4), targets=len(nll),
                        rare_nats=round(float(nll[rare].mean()), 3) if rare.any() else None,
                        rare_targets=int(rare.sum()),
                    )  # fmt: skip


def put(model: Any, changed: tuple[np.ndarray, np.ndarray] | None, bias: np.ndarray | None) -> None:
    """Set rows and head bias of a loaded model."""
    import torch

    with torch.no_grad():
        if changed is not None:
            model.get_input_embeddings().weight[torch.from_numpy(changed[0])] = torch.from_numpy(changed[1])
        if bias is not None:
            model.get_output_embeddings().bias.copy_(torch.from_numpy(bias.astype(np.float32)))


def held_out(context: Any, tokenizer: Any, batch: str) -> list[np.ndarray]:
    """Token ids of a batch's held-out documents."""
    from wals_spark import schemas
    from wals_spark.mlm.data import encode

    frame = context.tables.read(schemas.DOCUMENTS, {"batch_id": batch}).where("held_out").orderBy("doc_id")
    return encode(tokenizer, [row["text"] for row in frame.select("text").toLocalIterator()])


def training_sequences(directory: str, special: Any) -> Any:
    """Packed sequences of the counted documents of a batch."""
    from wals_spark import encoded
    from wals_spark.mlm.data import pack

    documents = []
    for shard in encoded.list_shards(directory):
        for chunk in encoded.read_shards([shard.path]):
            ends = chunk.offsets
            documents += [chunk.tokens[ends[i] : ends[i + 1]] for i in range(len(ends) - 1)]
    return pack([ids[ids >= 0] for ids in documents], special, 128)


def main() -> int:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=("speed", "arms", "checkpoint"))
    parser.add_argument("--data", type=Path, required=True, help="directory of the real data")
    parser.add_argument("--output", type=Path, help="checkpoint: where to write it")
    parser.add_argument("--warehouse", help="arms: a warehouse with the batches and factors")
    parser.add_argument("--run-id", default="default", help="arms: the run of the factors")
    parser.add_argument("--domain", default="biomedical", help="arms: batch of the domain")
    parser.add_argument("--sequences", type=int, default=600)
    parser.add_argument("--half-exposure", type=float, default=100.0)
    parser.add_argument("--shift", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=lambda text: [int(part) for part in text.split(",")], default=[])
    arguments = parser.parse_args()
    if arguments.case == "speed":
        speed(arguments.data)
    elif arguments.case == "checkpoint":
        random_checkpoint(arguments.output, arguments.data / "tokenizers" / "roberta-base" / "tokenizer.json")
    else:
        arms(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
