"""How the work is cut, and what is expected of it."""

from __future__ import annotations

import numpy as np
import pytest

from wals_spark.config import CooccurrenceConfig
from wals_spark.cooccurrence.plan import blocks_by_rank, expected_cells, make_plan
from wals_spark.cooccurrence.semantics import semantics_of
from wals_spark.token_shards import TokenShard

SEMANTICS = semantics_of(CooccurrenceConfig())


def shards(*batches):
    return [TokenShard(f"part-{index}", 10, tuple(sizes)) for index, sizes in enumerate(batches)]


def zipf(size, tokens):
    weights = 1 / np.arange(1, size + 1)
    return np.maximum(1, weights / weights.sum() * tokens).astype(np.int64)


def test_tasks_cover_every_batch_once_and_evenly():
    listing = shards([1 << 20] * 7, [1 << 19] * 3, [1 << 20])
    plan = make_plan(listing, zipf(1000, 10**7), SEMANTICS, slots=3, memory=1 << 30)
    covered = [(span.path, batch) for task in plan.tasks for span in task for batch in range(span.start, span.stop)]
    assert covered == [(shard.path, batch) for shard in listing for batch in range(len(shard.batches))]
    sizes = [sum(span.tokens for span in task) for task in plan.tasks]
    assert len(sizes) == 3
    assert max(sizes) < 1.5 * min(sizes)


def test_little_memory_means_more_tasks_not_larger_ones():
    listing = shards([1 << 20] * 40)
    counts = zipf(1000, 40 << 20)
    plan = make_plan(listing, counts, SEMANTICS, slots=2, memory=128 << 20)
    assert len(plan.tasks) > 2
    assert len(plan.tasks) % 2 == 0
    assert max(sum(span.tokens for span in task) for task in plan.tasks) <= 1.1 * plan.capacity


def test_a_small_batch_is_one_task():
    plan = make_plan(shards([1000]), zipf(100, 1000), SEMANTICS, slots=64, memory=1 << 30)
    assert len(plan.tasks) == 1
    assert plan.blocks <= 2


def test_one_file_and_one_long_document_are_shared_among_tasks():
    plan = make_plan(shards([1 << 20] * 16), zipf(1000, 16 << 20), SEMANTICS, slots=4, memory=1 << 30)
    assert [len({span.path for span in task}) for task in plan.tasks] == [1, 1, 1, 1]


def test_blocks_are_equally_dense():
    counts = zipf(10_000, 10**7)
    block_of = blocks_by_rank(counts, 8)
    rows = np.bincount(block_of)
    assert rows.tolist() == [1250] * 8
    heads = [np.sort(counts[block_of == block])[::-1][1:200].sum() for block in range(8)]
    assert max(heads) < 1.25 * min(heads)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [100_000, 1_000_000])
def test_expected_cells_of_independent_words(tokens):
    """For text that is independent draws the estimate must hit."""
    rng = np.random.default_rng(1)
    counts = zipf(2000, tokens)
    ids = rng.choice(2000, tokens, p=counts / counts.sum())
    pairs = set()
    for d in range(1, 11):
        codes = ids[:-d].astype(np.int64) * 2000 + ids[d:]
        pairs.update(codes.tolist())
        pairs.update((ids[d:].astype(np.int64) * 2000 + ids[:-d]).tolist())
    assert expected_cells(counts, tokens, SEMANTICS) == pytest.approx(len(pairs), rel=0.05)


def test_nothing_is_expected_of_nothing():
    assert expected_cells(np.zeros(5, np.int64), 0, SEMANTICS) == 0.0


def test_tasks_share_the_rows_where_all_tokens_fit():
    counts = zipf(1000, 8 << 20)
    listing = shards([1 << 20] * 8)
    assert make_plan(listing, counts, SEMANTICS, slots=4, memory=1 << 30).direct == 4
    assert make_plan(listing, counts, SEMANTICS, slots=64, memory=1 << 30).direct == 0
    assert make_plan(listing, counts, SEMANTICS, slots=4, memory=32 << 20).direct == 0
    assert make_plan(listing, counts, SEMANTICS, slots=4, memory=1 << 30, blocks=1).direct == 1
