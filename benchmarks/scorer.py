"""Speed and agreement of the vector scorer beside gensim: Google analogies and word pairs on random or given vectors.

    python benchmarks/scorer.py [--vectors FILE] [--data DIR] [--search 30000]

``--vectors`` is a word2vec text file, sorted by falling frequency; without it the words of the files and invented ones
get random vectors, which changes the accuracies and not the time. One JSON line per case.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gensim.models import KeyedVectors

from wals_spark.evaluate.intrinsic import AnalogyResult, read_pairs, read_questions, score_vectors


def random_vectors(pairs: Path, questions: Path, size: int, k: int) -> KeyedVectors:
    """Vectors of the files' words, lower case, filled up with invented words."""
    words = [word.lower() for question in read_questions(str(questions)) for word in question[1:]]
    words += [word.lower() for a, b, _ in read_pairs(str(pairs)) for word in (a, b)]
    known = list(dict.fromkeys(words))
    known += [f"filler{number}" for number in range(size - len(known))]
    vectors = KeyedVectors(k)
    vectors.add_vectors(known, np.random.default_rng(0).standard_normal((len(known), k)).astype(np.float32))
    return vectors


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result."""
    started = time.perf_counter()
    result = action()
    return time.perf_counter() - started, result


def main() -> int:
    """Run the benchmark."""
    data = os.environ.get("WALS_SPARK_DATA", str(Path(__file__).resolve().parents[2] / "shared" / "data"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors")
    parser.add_argument("--data", default=data)
    parser.add_argument("--search", type=int, default=30_000)
    parser.add_argument("--k", type=int, default=128)
    options = parser.parse_args()
    pairs = Path(options.data) / "similarity" / "EN-MEN-TR-3k.txt"
    questions = Path(options.data) / "analogy" / "questions-words.txt"
    if options.vectors:
        peer = KeyedVectors.load_word2vec_format(options.vectors)
    else:
        peer = random_vectors(pairs, questions, 2 * options.search, options.k)
    tokens, matrix = list(peer.index_to_key), peer.vectors

    ours, (rated,) = timed(lambda: score_vectors(tokens, matrix, [str(pairs)]))
    theirs, found = timed(lambda: peer.evaluate_word_pairs(str(pairs), restrict_vocab=len(tokens)))
    figures = {"rho": round(rated.rho.value, 5), "gensim_rho": round(float(found[1].statistic), 5)}
    times = {"seconds": round(ours, 3), "gensim_seconds": round(theirs, 3), "ratio": round(theirs / ours, 2)}
    print(json.dumps({"case": "pairs, with 2,000 resamples", "n": rated.covered, **figures, **times}), flush=True)

    ours, (solved,) = timed(lambda: score_vectors(tokens, matrix, [str(questions)], search=options.search))
    assert isinstance(solved, AnalogyResult)
    theirs, (accuracy, sections) = timed(lambda: peer.evaluate_word_analogies(str(questions), options.search))
    asked = sum(len(section["correct"]) + len(section["incorrect"]) for section in sections[:-1])
    figures = {"accuracy": round(solved.add.value, 5), "gensim_accuracy": round(accuracy, 5)}
    times = {"seconds": round(ours, 3), "gensim_seconds": round(theirs, 3), "ratio": round(theirs / ours, 2)}
    case = {"case": "analogies, 3CosAdd and 3CosMul; gensim 3CosAdd", "search": options.search}
    print(json.dumps({**case, "n": solved.covered, "gensim_n": asked, **figures, **times}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
