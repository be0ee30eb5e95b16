"""Injection measured: speed and memory at roberta-base size.

``python benchmarks/injection.py speed`` makes a random checkpoint of roberta-base's shape and factors of k = 128,
aligns, replaces every row, writes and verifies (reload in a new process included).

One JSON line. The gain on a domain's text is measured by `benchmarks/arms_prepare.py` and `arms_score.py`.
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
    from wals_spark.checkpoints.raw_tensor import from_numpy
    from wals_spark.checkpoints.safetensors_file import write_raw_tensors

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
    write_raw_tensors(directory / "model.safetensors", from_numpy(tensors.items()), {})


def speed(data: Path) -> None:
    """Align, blend, write and verify at roberta-base size."""
    from wals_spark.checkpoints import artifact, atomic_directory
    from wals_spark.checkpoints.checkpoint import embedding_values, open_checkpoint
    from wals_spark.checkpoints.verify import verify_checkpoint
    from wals_spark.config import load_config
    from wals_spark.factors.store import Vectors
    from wals_spark.inject.prepare import prepare_edit
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
            prepared, change, factors = prepare_edit(config, vectors)
        described = {"mode": "replace", "parameters": {"seed": 1, **config.inject.result_keys()}, "factors": None}
        with timed(times, "write"), atomic_directory.staged_directory(str(out), replace=False) as staging:
            artifact.write_artifact(staging, prepared, change, factors, described)
        changed = len(change.ids)
        del prepared, change, factors, vectors, U  # a stage of its own: verify starts with nothing in memory
        with timed(times, "verify"):
            report = verify_checkpoint(out, str(base))
        size = (base / "model.safetensors").stat().st_size
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        emit(
            "speed", seconds=times, total_s=round(sum(times.values()), 2), verified=report.passed,
            checkpoint_bytes=size, peak_over_checkpoint=round(peak / size, 2),
            rows_changed=changed, load=os.getloadavg()[0],
        )  # fmt: skip


def main() -> int:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=("speed", "checkpoint"))
    parser.add_argument("--data", type=Path, required=True, help="directory of the real data")
    parser.add_argument("--output", type=Path, help="checkpoint: where to write it")
    arguments = parser.parse_args()
    if arguments.case == "speed":
        speed(arguments.data)
    else:
        random_checkpoint(arguments.output, arguments.data / "tokenizers" / "roberta-base" / "tokenizer.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
