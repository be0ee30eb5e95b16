"""How a batch is cut into tasks and row blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wals_spark.cooccurrence.semantics import Semantics
from wals_spark.cooccurrence.window import chunk_capacity, direct_bytes
from wals_spark.token_shards import BatchRange, TokenShard, split_shards

CELLS_PER_BLOCK = 4_000_000
TOKENS_PER_TASK = 1 << 19
RANK_BINS = 400
LARGEST_BLOCKS = 65_536
DIRECT_TASKS = 16
"""With more slots than this, every task reading all tokens costs more than the shuffle saves."""


@dataclass(frozen=True)
class CountingPlan:
    """The shape of a counting job.

    Attributes
    ----------
    tasks : list of list of BatchRange
        What each counting task reads; about equal in tokens.
    direct : int
        When all tokens fit into every task: how many tasks read them all and count a share of the row
        blocks each, so that there is nothing to shuffle and to merge. 0 = not so.
    blocks : int
        Row blocks, and merging tasks.
    tokens, documents : int
    capacity : int
        Tokens counted at a time in a task.
    cells : float
        Expected non-zeros, see `expected_cells`.
    """

    tasks: list[list[BatchRange]]
    direct: int
    blocks: int
    tokens: int
    documents: int
    capacity: int
    cells: float


def make_plan(
    shards: Sequence[TokenShard],
    counts: np.ndarray,
    semantics: Semantics,
    *,
    slots: int,
    memory: int,
    blocks: int | None = None,
) -> CountingPlan:
    """Cut the work for the slots of a cluster.

    There are as many tasks as slots, or a multiple of it when a task would have to count in more than
    one piece, but none for less than `TOKENS_PER_TASK` tokens. Where all tokens fit into `memory` and the
    slots are few, tasks share the rows instead of the tokens (`CountingPlan.direct`).

    Parameters
    ----------
    shards : list of TokenShard
        The encoded documents.
    counts : int64 array of shape (V,)
        Occurrences of every token.
    semantics : Semantics
    slots : int
        Tasks that run at a time.
    memory : int
        Bytes that a task may hold.
    blocks : int, optional
        Row blocks; None = one per `CELLS_PER_BLOCK` expected cells, and at least two per slot or task.

    Returns
    -------
    CountingPlan
    """
    tokens = sum(shard.tokens for shard in shards)
    capacity = chunk_capacity(memory, len(counts))
    wanted = min(slots, math.ceil(tokens / TOKENS_PER_TASK))
    if tokens > slots * capacity:
        wanted = slots * math.ceil(tokens / (slots * capacity))
    wanted = max(1, wanted)
    spans = split_shards(shards, max(1, tokens // (16 * wanted)))
    cells = expected_cells(counts, tokens, semantics)
    if blocks is None:
        blocks = max(math.ceil(cells / CELLS_PER_BLOCK), 2 * min(slots, wanted))
    blocks = max(1, min(blocks, len(counts), LARGEST_BLOCKS))
    readers = min(slots, wanted, blocks) if slots <= DIRECT_TASKS else 0
    fits = readers > 0 and 4 * direct_bytes(tokens, len(counts), readers) <= 3 * memory
    return CountingPlan(
        tasks=_even(spans, wanted),
        direct=readers if fits and tokens else 0,
        blocks=blocks,
        tokens=tokens,
        documents=sum(shard.documents for shard in shards),
        capacity=capacity,
        cells=cells,
    )


def _even(spans: Sequence[BatchRange], parts: int) -> list[list[BatchRange]]:
    """Consecutive spans in `parts` groups of about equal tokens; empty groups are left out."""
    total = sum(span.tokens for span in spans)
    groups: list[list[BatchRange]] = [[] for _ in range(parts)]
    before = 0
    for span in spans:
        middle = before + span.tokens / 2
        groups[min(parts - 1, int(middle * parts / total)) if total else 0].append(span)
        before += span.tokens
    return [group for group in groups if group]


def blocks_by_rank(counts: np.ndarray, blocks: int) -> np.ndarray:
    """Block of every row: its rank by count modulo the number of blocks, so that blocks are equally dense.

    Returns
    -------
    int32 array of shape (V,)
    """
    ranks = np.empty(len(counts), np.int64)
    ranks[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    return (ranks % blocks).astype(np.int32)


def expected_cells(counts: np.ndarray, tokens: int, semantics: Semantics) -> float:
    """Expected non-zeros if words came independently: an upper estimate, as real text repeats itself.

    sum_ij 1 - exp(-P q_i q_j),  P = tokens x (window_left + window_right),  q = counts / tokens

    over ranks binned so that the sum has `RANK_BINS`^2 terms.
    """
    present = np.sort(counts[counts > 0])[::-1].astype(np.float64)
    if not len(present) or not tokens:
        return 0.0
    edges = np.unique(np.geomspace(1, len(present) + 1, RANK_BINS).astype(np.int64)) - 1
    sizes = np.diff(edges).astype(np.float64)
    means = np.add.reduceat(present, edges[:-1]) / sizes
    # Counts of several batches may stand in the vocabulary; only their proportions matter.
    q = means / present.sum()
    pairs = tokens * (semantics.window_left + semantics.window_right)
    return float(sizes @ -np.expm1(-pairs * np.outer(q, q)) @ sizes)
