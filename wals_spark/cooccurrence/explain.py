"""The plan of a counting job before it runs: work, memory, disk."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence

import numpy as np

from wals_spark.cooccurrence.plan import CountingPlan, expected_cells, make_plan
from wals_spark.cooccurrence.semantics import Semantics, semantics_of
from wals_spark.cooccurrence.window import TOKEN_BYTES, VOCABULARY_BYTES, WindowCounter, direct_bytes
from wals_spark.stage import Context
from wals_spark.stage_outputs import VocabularyOutputs, require_outputs
from wals_spark.tables.vocabulary import read_vocabulary
from wals_spark.token_shards import Boundary, TokenChunk, TokenShard, list_shards, read_batch_ranges, split_shards

logger = logging.getLogger(__name__)

SAMPLE_TOKENS = 400_000
SAMPLE_SPANS = 8
BYTES_PER_CELL = 2.5
PACKED_BYTES_PER_CELL = 3.5


def explain(context: Context) -> list[str]:
    """What `wals-spark cooccurrence` would do, in lines; counts a sample of `SAMPLE_TOKENS` tokens.

    The non-zeros of the sample, divided by what independent words of the same frequencies would give,
    is a ratio that hardly changes with size (0.76 to 0.78 from 100,000 to 16 million tokens of English);
    times the latter for the whole batch it is the estimate.

    Raises
    ------
    InputError
        The vocabulary of the batch is not there yet.
    """
    config = context.config
    outputs = require_outputs(context.manifests, VocabularyOutputs, config.corpus.batch_id)
    vocabulary = read_vocabulary(context.tables)
    semantics = semantics_of(config.cooccurrence, config.seed)
    semantics.check_head_room(int(vocabulary.counts.max(initial=0)))
    shards = list_shards(outputs["encoded"])
    memory = config.cooccurrence.memory_per_task
    slots = context.spark.sparkContext.defaultParallelism
    plan = make_plan(
        shards, vocabulary.counts, semantics, slots=slots, memory=memory, blocks=config.cooccurrence.blocks
    )
    sampled, ratio = sample_ratio(shards, vocabulary.counts, semantics)
    return describe(plan, semantics, len(vocabulary.tokens), memory, slots, sampled, plan.cells * ratio)


def sample_ratio(shards: Sequence[TokenShard], counts: np.ndarray, semantics: Semantics) -> tuple[int, float]:
    """Tokens sampled, and their non-zeros over `expected_cells`."""
    size = len(counts)
    counter = WindowCounter(semantics, size, np.zeros(size, np.int32), 1 << 30, counts)
    for _ in counter.count(_sample(shards, semantics)):
        pass
    expected = expected_cells(counts, counter.totals.tokens, semantics)
    return counter.totals.tokens, counter.totals.cells / expected if expected else 1.0


def _sample(shards: Sequence[TokenShard], semantics: Semantics) -> Iterator[TokenChunk]:
    """Pieces of about equal size from all over the batch."""
    spans = split_shards(shards, 1)
    chosen = spans[:: max(1, len(spans) // SAMPLE_SPANS)][:SAMPLE_SPANS]
    boundary: Boundary = semantics.boundary  # type: ignore[assignment]  # the configuration allows these three only
    limit = SAMPLE_TOKENS // max(1, len(chosen))
    for span in chosen:
        taken = 0
        for chunk in read_batch_ranges([span], limit, boundary=boundary, context=semantics.window):
            yield chunk
            taken += len(chunk.tokens)
            if taken >= limit:
                break


def describe(
    plan: CountingPlan, semantics: Semantics, size: int, memory: int, slots: int, sampled: int, cells: float
) -> list[str]:
    """The plan in words.

    Parameters
    ----------
    plan : CountingPlan
    semantics : Semantics
    size : int
        V.
    memory : int
        Bytes that a task may hold.
    slots : int
        Tasks that run at a time.
    sampled : int
        Tokens of the sample.
    cells : float
        Expected non-zeros.

    Returns
    -------
    list of str
        Lines.
    """
    per_task = math.ceil(plan.tokens / max(1, len(plan.tasks)))
    pieces = math.ceil(per_task / plan.capacity)
    held = VOCABULARY_BYTES * size + TOKEN_BYTES * min(per_task, plan.capacity)
    if plan.direct:
        held = direct_bytes(plan.tokens, size, plan.direct)
        work = f"{plan.direct} tasks on {slots} slots count a share of the rows over all tokens each, without a shuffle"
        shuffle = ""
    else:
        work = (
            f"{len(plan.tasks)} counting tasks on {slots} slots, {per_task:,} tokens each, in {pieces} "
            f"piece{'s' * (pieces != 1)}"
        )
        packed = cells * len(plan.tasks) * pieces * PACKED_BYTES_PER_CELL
        shuffle = f", and up to {packed / 1e6:,.0f} MB of shuffle while it runs"
    work += f"; {held / 1e6:,.0f} MB held of {memory / 1e6:,.0f} MB allowed"
    unit = "exact" if semantics.exact_unit else f"each weight within {semantics.weight_error:.2g}"
    return [
        f"window {semantics.window_left} + {semantics.window_right}, {semantics.distance_weighting} weights in units "
        f"of 1/{semantics.unit:,} ({unit}), boundary {semantics.boundary}, oov {semantics.oov}",
        f"{plan.documents:,} documents, {plan.tokens:,} tokens, vocabulary {size:,}",
        f"about {cells:,.0f} non-zeros expected, density {cells / max(1, size) ** 2:.2%} "
        f"(from a sample of {sampled:,} tokens)",
        work,
        f"{plan.blocks} row blocks of about {cells / plan.blocks:,.0f} non-zeros",
        f"disk: about {cells * BYTES_PER_CELL / 1e6:,.0f} MB for the table{shuffle}",
    ]
