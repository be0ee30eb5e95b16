"""A whole new tokenizer, without a model: rows of shared tokens predicted from those of other shared tokens.

    python benchmarks/transfer_rows.py --work DIR [--data DIR] [--model DIR] [--folds 2]

`benchmarks/transfer_prepare.py` has made the work directory. Shared tokens that the corpus has 20 times or more are cut
into five folds; each method of mode ``transfer`` makes the rows of a fold from the other four. Printed are
R^2 = 1 - sum w |e - p|^2 / sum w |e - mean|^2 with w = c / (c + 100), and the mean cosine of e and p around that mean.
The pieces of a token of a BPE are the two that its own merge joins.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from transfer_prepare import DOMAIN, configuration

from wals_spark.checkpoints import checkpoint as ckpt
from wals_spark.factors.store import read_vectors
from wals_spark.inject import align
from wals_spark.inject.transfer import plan_transfer
from wals_spark.inject.vocabulary import extend, transfer
from wals_spark.inject.vocabulary.tokenizer_json import bpe_merges, token_ids
from wals_spark.stage import Context
from wals_spark.tokenizer import load_tokenizer


def halves(content: dict[str, Any], tokens: list[str], E: np.ndarray) -> np.ndarray:
    """Mean of the rows of the two pieces that the merge of each token joins, float32 (n, d); the mean row without."""
    parts: dict[str, tuple[str, str]] = {}
    for left, right in bpe_merges(content):
        parts.setdefault(left + right, (left, right))
    known = token_ids(content)
    found = [np.array([known[piece] for piece in parts.get(token, ())], np.int64) for token in tokens]
    return extend.mean_of_pieces(E, found)


def main() -> None:
    """Print a line for every method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model", type=Path, help="default: mini-roberta of the data")
    parser.add_argument("--folds", type=int, default=2, help="of five")
    options = parser.parse_args()
    model = options.model or options.data / "models" / "mini-roberta"
    context = Context(configuration(options.data, options.work, model, DOMAIN))
    vectors = read_vectors(context.tables, context.config.run_id, "u")
    context.stop()
    opened = ckpt.open_checkpoint(str(model))
    old, new = load_tokenizer(str(model)), load_tokenizer(str(options.work / "tokenizer"))
    plan = plan_transfer(opened, old, new, str(options.work / "tokenizer"))
    E, counts = ckpt.embedding_values(opened), vectors.counts
    usable = (plan.origin >= 0) & ~np.isin(plan.origin, plan.protected) & (counts >= 20)
    anchors = np.flatnonzero(usable)
    rows, w = E[plan.origin[anchors]], align.anchor_weights(counts[anchors], 100.0)
    content = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    split = halves(content, [new.tokens[index] for index in anchors], E)
    fold = align.stratified_folds(counts[anchors], 5, 1)
    totals: dict[str, np.ndarray] = {}
    for number in range(options.folds):
        test, train = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        sums = align.sums_by_fold(
            vectors.matrix, E, w[train], fold[train] % 4, 4, u_rows=anchors[train], e_rows=plan.origin[anchors[train]]
        )
        cv = align.cross_validate(sums)
        ridge = align.fit_map(align.sum_of_folds(sums), "ridge", cv.best)
        given = (vectors.matrix, anchors[test], anchors[train], rows[train])
        predicted = {
            "factors": ridge.predict(vectors.matrix[anchors[test]]),
            "focus": transfer.combined_rows("focus", *given),
            "omp": transfer.combined_rows("omp", *given),
            "subtokens": split[test],
            "random": transfer.random_rows(E, len(test), 1),
        }
        centre = np.average(rows[train], axis=0, weights=w[train])
        away = rows[test] - centre
        for name, p in predicted.items():
            moved = p - centre
            scale = np.linalg.norm(away, axis=1) * np.linalg.norm(moved, axis=1)
            cosine = (away * moved).sum(axis=1) / np.maximum(scale, 1e-12)
            error, total = w[test] @ ((rows[test] - p) ** 2).sum(axis=1), w[test] @ (away**2).sum(axis=1)
            totals[name] = totals.get(name, np.zeros(4)) + np.array([error, total, cosine.sum(), len(test)])
    for name, (error, total, cosine, count) in totals.items():
        print(json.dumps({"rows": name, "r2": 1 - error / total, "cosine": cosine / count, "tokens": int(count)}))


if __name__ == "__main__":
    main()
