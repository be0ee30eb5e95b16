"""Markers, unknown tokens and subsampling, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from oracles.cooccurrence import occurrence_hash

from wals_spark.cooccurrence.kernels.token_cleaning import (
    BREAK,
    HOLD,
    REMOVE,
    CleaningRules,
    DocumentTokens,
    clean_tokens,
)


def cleaned(tokens, unknown, thresholds=(), dropped=HOLD):
    actions = np.array([0, unknown, BREAK, REMOVE, BREAK], np.int64)
    rules = CleaningRules(actions, 3, np.array(thresholds, np.uint64), 5, dropped)
    documents = DocumentTokens(np.array(tokens, np.int32), np.array([0, len(tokens)]), np.array([9], np.uint64), 0)
    out, bounds = np.empty(20, np.uint32), np.empty(20, np.int64)
    ids, segments, kept, subsampled, bad = clean_tokens(documents, rules, out, bounds)
    return out[: int(ids)].tolist(), bounds[: int(segments)].tolist(), kept, subsampled, bad


@pytest.mark.parametrize(
    ("unknown", "ids", "bounds"),
    [(HOLD, [0, 3, 1, 2], [0, 3, 4]), (REMOVE, [0, 1, 2], [0, 2, 3]), (BREAK, [0, 1, 2], [0, 1, 2, 3])],
)
def test_unknown_tokens_and_paragraphs(unknown, ids, bounds):
    assert cleaned([0, -1, 1, -2, 2], unknown) == (ids, bounds, 3, 0, -1)


def test_a_token_outside_the_vocabulary_is_pointed_at():
    assert cleaned([0, 3], HOLD)[-1] == 1
    assert cleaned([0, 1, -5], HOLD)[-1] == 2


@pytest.mark.parametrize("dropped", [HOLD, REMOVE])
def test_an_occurrence_stays_below_its_threshold(dropped):
    hashes = [occurrence_hash(9, position, 5) for position in range(3)]
    limit = sorted(hashes)[1]
    expected = [1 if number < limit else 3 for number in hashes if number < limit or dropped == HOLD]
    found = cleaned([1, 1, 1], HOLD, [limit] * 3, dropped)
    assert found[0] == expected
    assert found[2:] == (1, 2, -1)
