"""The cost of compressing an embedding, at equal bytes: one JSON line per case.

    python benchmarks/compression.py loss --model DIR --corpus FILES [--ranks 32,64,128] [--sweeps 6]
    python benchmarks/compression.py speed [--rows 50265] [--width 768]

``loss``: masked-LM loss of the model with its embedding replaced by every choice, on documents with index % 50 == 49,
which neither the model nor the statistics have seen; the difference from the base with a bootstrap interval over
documents. ``speed``: seconds and peak memory of the presets on a random matrix with a falling spectrum.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from wals_spark.checkpoints.checkpoint import embedding_values, open_checkpoint
from wals_spark.compress import methods, quantise, text_statistics
from wals_spark.compress.comparison import ReconstructionErrors
from wals_spark.compress.methods import PRESETS, CompressionProblem
from wals_spark.mlm import data
from wals_spark.mlm.loss import load_masked_lm, score
from wals_spark.mlm.statistics import Clusters
from wals_spark.tokenizer import load_tokenizer

HELD_OUT_EVERY = 50
RESAMPLES = 2000


def emit(**values: Any) -> None:
    """Print a case."""
    print(json.dumps(values), flush=True)


def documents(files: list[str]) -> tuple[list[str], list[str]]:
    """Documents to learn from and documents to test on."""
    texts = [value for file in files for value in pq.read_table(file, columns=["text"])["text"].to_pylist()]
    held = [value for index, value in enumerate(texts) if index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1]
    return [value for index, value in enumerate(texts) if index % HELD_OUT_EVERY != HELD_OUT_EVERY - 1], held


def loss(options: argparse.Namespace) -> None:
    """Masked-LM loss of every choice."""
    import torch

    opened = open_checkpoint(options.model, "--model")
    tokenizer = load_tokenizer(options.model)
    special = data.special_ids(tokenizer)
    learn, held = documents(options.corpus)

    def sample(texts: list[str], sequences: int, seed: int) -> data.MaskedSequences:
        packed = data.pack_sequences(data.encode(tokenizer, texts), special, 128, limit=sequences, round_robin=True)
        return data.mask_tokens(packed, special, text_statistics.MASKED_FRACTION, seed)

    E = embedding_values(opened)
    counts = np.bincount(np.concatenate(data.encode(tokenizer, learn[::4])), minlength=len(E)) + 0.5
    sensitivity = text_statistics.measure_sensitivity(opened.directory, sample(learn[::8], options.sequences, 1))
    problem = CompressionProblem(E, opened.tensors[opened.embedding].dtype, counts, sensitivity)
    test = sample(held, options.test_sequences, 7)
    errors = ReconstructionErrors(E, counts, sensitivity.second_moment)
    model = load_masked_lm(options.model)
    matrix = model.get_input_embeddings().weight
    clusters = Clusters(test.document, RESAMPLES, 0)
    base = score(model, test).nll

    def measure(name: str, values: np.ndarray, size: int, rank: int | None, budget: int) -> None:
        with torch.no_grad():
            matrix.copy_(torch.from_numpy(np.array(values, np.float32)))
        nll = score(model, test).nll
        gap = clusters.difference(nll, base)
        emit(
            case="loss", choice=name, rank=rank, bytes=size, budget=budget, share=round(size / (4 * E.size), 4),
            nats=round(float(nll.mean()), 4), more=[round(value, 4) for value in (gap.value, gap.low, gap.high)],
            **{key: round(value, 8) for key, value in errors.of(values).items() if value is not None},
        )  # fmt: skip

    emit(case="base", targets=len(test), documents=clusters.count, nats=round(float(base.mean()), 4))
    forms = problem.closed_forms()
    for rank in options.ranks:
        for name, values, size, at in choices(problem, forms, rank, options.sweeps):
            measure(name, values, size, at, (sum(E.shape) * rank + E.shape[1]) * 4)


def choices(
    problem: CompressionProblem, forms: dict[str, methods.ClosedForm], rank: int, sweeps: int
) -> Iterator[tuple[str, np.ndarray, int, int | None]]:
    """Name, matrix, bytes and rank of every choice in the bytes of a rank."""
    factors = None
    for name, form in forms.items():
        factors = methods.closed_factors(problem, rank, form)
        yield "fisher by rows" if name == "fisher" else name, factors.expand().values(), factors.bytes, rank
    assert factors is not None
    settings = replace(PRESETS["standard"], sweeps=sweeps)
    if sweeps:
        fisher = methods.factorise_embedding(problem, "fisher", rank, settings, forms["fisher"]).factors
        yield "fisher", fisher.expand().values(), fisher.bytes, rank
    for control in quantise.controls(problem.E, factors.bytes):
        yield control.name, control.values, control.bytes, None


def speed(options: argparse.Namespace) -> None:
    """Seconds and memory of the presets."""
    generator = np.random.default_rng(0)
    spectrum = np.arange(1, options.width + 1) ** -0.5
    E = (generator.standard_normal((options.rows, options.width), np.float32) * spectrum.astype(np.float32)).astype(
        np.float32
    )
    problem = CompressionProblem(E, "F32")
    for name, preset in PRESETS.items():
        started = time.monotonic()
        form = problem.closed_forms()["svd"]
        solution = methods.factorise_embedding(problem, preset.method, preset.rank, preset, form)
        seconds = time.monotonic() - started
        solution.factors.expand()
        facts = {key: solution.facts[key] for key in ("error", "bound") if key in solution.facts}
        emit(
            case="speed", preset=name, method=preset.method, rank=preset.rank, rows=options.rows, width=options.width,
            seconds=round(seconds, 2), with_expansion=round(time.monotonic() - started, 2),
            half_sweeps=len(solution.facts.get("losses", ())), matrix_mb=E.nbytes >> 20,
            peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10, **facts,
        )  # fmt: skip


def main() -> None:
    """Run a benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    losses = commands.add_parser("loss")
    losses.add_argument("--model", required=True)
    losses.add_argument("--corpus", required=True, nargs="+", help="Parquet files with a column text")
    losses.add_argument("--ranks", type=lambda value: [int(rank) for rank in value.split(",")], default=[32, 64, 128])
    losses.add_argument("--sequences", type=int, default=512)
    losses.add_argument("--test-sequences", type=int, default=160)
    losses.add_argument("--sweeps", type=int, default=6, help="of fisher; 0 leaves it out")
    speeds = commands.add_parser("speed")
    speeds.add_argument("--rows", type=int, default=50_265)
    speeds.add_argument("--width", type=int, default=768)
    options = parser.parse_args()
    {"loss": loss, "speed": speed}[options.command](options)


if __name__ == "__main__":
    main()
