"""Seconds of the states of masked tokens beside a plain batched torch loop over the same sequences and masks.

    python benchmarks/states.py --corpus FILE.parquet --checkpoint DIR [--sequences 48] [--maskings 1] [--threads 1]

One JSON line for each way and round, the ways taking turns; ``cpu`` are processor seconds of the process, ``wall``
those of the clock, ``ratio`` is processor seconds over those of the plain loop of the same round. The loop pads batches
of 16 in the order of the sequences, calls the encoder, then the head at masked positions, and keeps the same numbers of
each. ``load`` is the time to load and check the model, once for a worker process.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import pyarrow.parquet as pq
import torch

from wals_spark.mlm.data import SpecialIds, special_ids
from wals_spark.mlm.hidden_states import CANDIDATES, MaskedStates
from wals_spark.mlm.loss import load_masked_lm
from wals_spark.mlm.masking import Maskings, is_special, masked_positions
from wals_spark.mlm.state_encoder import StateEncoder
from wals_spark.mlm.text_sequences import TextSequences, cut_documents, smallest_sequences
from wals_spark.tokenizer import load_tokenizer


def sample(corpus: str, checkpoint: str, count: int, length: int, seed: int) -> TextSequences:
    """Sequences of the first documents of a Parquet file with a column ``text``."""
    texts = pq.read_table(corpus, columns=["text"])["text"].to_pylist()[: 4 * count]
    tokenizer = load_tokenizer(checkpoint).tokenizer
    encoded = [np.array(found.ids, np.int32) for found in tokenizer.encode_batch(texts, add_special_tokens=False)]
    offsets = np.cumsum([0, *map(len, encoded)]).astype(np.int64)
    keys = np.arange(len(texts), dtype=np.uint64)
    return smallest_sequences(cut_documents(np.concatenate(encoded), offsets, keys, length), count, seed)


def plain_loop(
    model: Any, special: SpecialIds, sequences: TextSequences, maskings: Maskings, size: int
) -> MaskedStates:
    """The same numbers by a loop over batches in the order of the sequences."""
    table = is_special(special)
    rows = []
    for index in range(len(sequences)):
        for positions in masked_positions(sequences, index, maskings, table):
            rows.append((sequences.document[index], sequences.piece(index), positions))
    caught: list[torch.Tensor] = []
    decoder, head = model.get_output_embeddings(), getattr(model, "lm_head", None) or model.cls
    handle = decoder.register_forward_pre_hook(lambda _, arguments: caught.append(arguments[0]))
    kept: list[list[np.ndarray]] = [[] for _ in range(6)]
    with torch.inference_mode():
        for begin in range(0, len(rows), size):
            batch = rows[begin : begin + size]
            length = max(len(piece) for _, piece, _ in batch) + 2
            inputs = torch.full((len(batch), length), model.config.pad_token_id)
            flat, target, document = [], [], []
            for row, (key, piece, positions) in enumerate(batch):
                inputs[row, : len(piece) + 2] = torch.tensor([special.start, *piece.tolist(), special.end])
                inputs[row, positions + 1] = special.mask
                flat += (row * length + positions + 1).tolist()
                target += piece[positions].tolist()
                document += [key] * len(positions)
            mask = (torch.arange(length) < torch.tensor([len(piece) + 2 for _, piece, _ in batch])[:, None]).long()
            hidden = model.base_model(inputs, attention_mask=mask).last_hidden_state.flatten(0, 1)
            logits = head(hidden[torch.tensor(flat)])
            best = logits.topk(CANDIDATES, dim=1).indices
            right = logits.gather(1, torch.tensor(target)[:, None])[:, 0]
            made = (caught.pop().half(), target, document, best.int(), logits.logsumexp(1), right)
            for column, values in zip(kept, made, strict=True):
                column.append(np.asarray(values))
    handle.remove()
    return MaskedStates(*(np.concatenate(column) for column in kept))


def timed(way: Callable[[], MaskedStates]) -> tuple[MaskedStates, float, float]:
    """What a way gives, its processor seconds and its seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = way()
    return found, time.process_time() - cpu, time.perf_counter() - wall


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--sequences", type=int, default=48)
    parser.add_argument("--maskings", type=int, default=1)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="fp32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sequences = sample(options.corpus, options.checkpoint, options.sequences, options.length, 1)
    maskings = Maskings(options.maskings)
    special = special_ids(load_tokenizer(options.checkpoint))
    started = time.perf_counter()
    model = load_masked_lm(options.checkpoint)
    encoder = StateEncoder(model, special, precision=options.precision, batch_size=options.batch_size)
    print(json.dumps({"load": round(time.perf_counter() - started, 2), **vars(options)}))
    ways = {
        "plain": lambda: plain_loop(model, special, sequences, maskings, 16),
        "states": lambda: encoder.states(sequences, maskings),
    }
    for round_ in range(options.rounds):
        found, cpu = {}, {}
        for name in ways if round_ % 2 == 0 else reversed(ways):
            found[name], cpu[name], wall = timed(ways[name])
            line = {"round": round_, "way": name, "cpu": round(cpu[name], 2), "wall": round(wall, 2)}
            print(json.dumps({**line, "per_pass": round(cpu[name] / len(sequences) / maskings.count, 4)}), flush=True)
        loss = {name: float(states.base_loss.mean()) for name, states in found.items()}
        off = np.abs(found["states"].hidden.astype(np.float64) - found["plain"].hidden.astype(np.float64))
        facts = {"ratio": round(cpu["states"] / cpu["plain"], 3), "positions": len(found["states"]), "loss": loss}
        print(
            json.dumps(
                {**facts, "largest_difference": float(off.max()), "rms_difference": float((off**2).mean() ** 0.5)}
            )
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
