"""The plan of the stage ``states`` before it runs: sequences, forward passes, bytes, time."""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np

from wals_spark.inject.fit.inputs import check_checkpoint, encoded_text, text_batches
from wals_spark.inject.fit.states_job import choose_device
from wals_spark.mlm.data import special_ids
from wals_spark.mlm.loss import load_masked_lm
from wals_spark.mlm.masking import Maskings
from wals_spark.mlm.state_encoder import StateEncoder, state_bytes
from wals_spark.mlm.text_sequences import TextSequences
from wals_spark.stage import Context
from wals_spark.stage_outputs import VocabularyOutputs, require_outputs
from wals_spark.token_shards import list_shards

TIMED_SEQUENCES = 8
"""Sequences of the batch that is timed; it is computed twice and the second time counts."""


def explain_states(context: Context) -> list[str]:
    """What `wals-spark states` would do, in lines; times one batch on the driver's processor and writes nothing.

    Raises
    ------
    InputError
        The vocabulary of a batch is not there yet, or the checkpoint does not fit it.
    """
    config = context.config
    settings = config.states
    opened, tokenizer = check_checkpoint(config)
    batches = text_batches(config, context.manifests)
    encoded = {key: require_outputs(context.manifests, VocabularyOutputs, key) for key in batches}
    domain, general = encoded_text(config, encoded)
    body = settings.sequence_length - 2
    tokens, most = _text_size(domain.values(), body)
    sequences = min(settings.sequences, most)
    general_sequences = min(settings.general_sequences, _text_size(general.values(), body)[1])
    passes = (sequences + general_sequences) * settings.maskings
    hidden = Maskings(settings.maskings, settings.mask_fraction).hidden(body)
    conf = context.spark.sparkContext.getConf()
    threads = int(conf.get("spark.task.cpus", "1"))
    slots = max(1, context.spark.sparkContext.defaultParallelism // threads)
    device = choose_device(context.spark, settings.device)
    model = load_masked_lm(str(opened.directory))
    encoder = StateEncoder(model, special_ids(tokenizer), precision=settings.precision)
    seconds = seconds_per_pass(encoder, settings.sequence_length, threads)
    hours = passes * seconds / slots / 3600
    where = "a processor's task; a GPU takes a small part of it" if device.kind == "cuda" else "a task"
    return [
        f"{len(domain)} batches of the domain, {tokens:,} tokens; general text: {', '.join(general) or 'none'}",
        f"at most {sequences:,} sequences of {settings.sequence_length} tokens, about "
        f"{settings.validation_fraction:.0%} held out to choose penalties on, and {general_sequences:,} of general "
        "text",
        f"{settings.maskings} maskings each: {passes:,} forward passes of one sequence, {hidden} masked tokens each, "
        f"in {settings.precision} on {device.kind}",
        f"disk: at most {passes * hidden * state_bytes(opened.hidden_size) / 1e6:,.0f} MB, "
        f"{state_bytes(opened.hidden_size):,} bytes a masked token",
        f"about {_duration(hours)} in {slots} tasks at a time: {seconds:.3g} s a pass with {threads} threads, timed on "
        f"the driver in a batch of {TIMED_SEQUENCES}, taken for {where}",
    ]


def seconds_per_pass(encoder: StateEncoder, length: int, threads: int) -> float:
    """Seconds of a forward pass of one sequence in a batch of `TIMED_SEQUENCES`, states included."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    size, body = TIMED_SEQUENCES, length - 2
    ordinary = np.setdiff1d(np.arange(encoder.special.size), list(encoder.special.all))
    tokens = np.random.default_rng(0).choice(ordinary, size * body).astype(np.int32)
    numbers = np.arange(size)
    made = TextSequences(tokens, np.arange(size + 1) * body, numbers.astype(np.uint64), np.zeros(size, np.int64))
    started = time.perf_counter()
    try:
        for _ in range(2):
            started = time.perf_counter()
            encoder.states(made, Maskings(1))
    finally:
        torch.set_num_threads(before)
    return (time.perf_counter() - started) / size


def _duration(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.2g} minutes"


def _text_size(directories: Iterable[str], body: int) -> tuple[int, int]:
    """Tokens of some batches, and a number of pieces of at most `body` tokens that they do not exceed."""
    shards = [shard for directory in directories for shard in list_shards(directory)]
    tokens = sum(shard.tokens for shard in shards)
    return tokens, tokens // body + sum(shard.documents for shard in shards)
