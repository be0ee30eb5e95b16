"""Word vectors by every objective beside SVD, SGNS and GloVe on the same text: similarity, analogies, seconds.

    python benchmarks/vectors.py --warehouse W --evaluate similarity/*.txt analogy/questions-words.txt --k 100
        --objectives ppmi glove pu --peers svd sgns glove --texts enwiki/*.parquet --glove-build GloVe/build

One JSON line per vectors and file, with coverage and a 95 % bootstrap interval; analogies search the 30,000 most
frequent words. ``--half tune`` uses every other pair or question and ``--half report`` the rest, so that parameters can
be chosen on one half and reported on the other. The warehouse needs a vocabulary of words (``vocabulary.kind: words``).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from cooccurrence import read_texts, write_plain
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import svds

from wals_spark import schemas
from wals_spark.cluster.process_group import LocalGroup
from wals_spark.config import TrainConfig
from wals_spark.evaluate.intrinsic import AnalogyResult, score_vectors
from wals_spark.matrix.list_column import lists_to_matrix
from wals_spark.objective import make_objective
from wals_spark.runs import ManifestStore
from wals_spark.stage_outputs import CooccurrenceOutputs, require_outputs
from wals_spark.tables import open_tables
from wals_spark.wals.engine.rank import run
from wals_spark.wals.engine.task import RankTask

WORD = re.compile("[a-z]+")
PEERS = ("svd", "sgns", "glove")


def no_session() -> Any:
    """The tables are read without Spark."""
    raise RuntimeError("this benchmark needs no Spark session")


class Words:
    """The vocabulary and the counts of a warehouse."""

    def __init__(self, warehouse: str, batch: str) -> None:
        tables = open_tables("parquet", os.path.abspath(warehouse), no_session)
        outputs = require_outputs(ManifestStore(os.path.abspath(warehouse)), CooccurrenceOutputs, batch)
        self.unit, self.size = outputs["unit"], outputs["vocabulary_size"]
        self.symmetric = outputs["symmetric"]
        self.files = [file.path for file in tables.files(schemas.COOCCURRENCE, {"batch_id": batch})]
        parts = [pq.read_table(file.path) for file in tables.files(schemas.VOCABULARY)]
        rows = sorted((row["token_id"], row["token"], row["count"]) for part in parts for row in part.to_pylist())
        self.tokens = [token for _, token, _ in rows]
        self.counts = np.array([count for _, _, count in rows])

    def train(self, objective: str, k: int, sweeps: int, threads: int, given: dict[str, Any]) -> tuple[Any, Any]:
        """U and V of a preset, in the canonical gauge."""
        with tempfile.TemporaryDirectory() as directory:
            task = RankTask(
                files=tuple(self.files),
                shape=(self.size, self.size),
                symmetric=self.symmetric,
                unit=self.unit,
                objective=make_objective(objective, **given),
                config=TrainConfig(k=k, sweeps=sweeps, tolerance=0.0, checkpoint_every=2 * sweeps),
                seed=1,
                directory=directory,
                threads=threads,
            )
            run(task, LocalGroup())
            result = Path(task.result)
            return read_side(result, "row"), read_side(result, "col")

    def ppmi(self) -> csr_matrix:
        """max(PMI, 0) as a sparse matrix."""
        table = pq.read_table(self.files, columns=["row_id", "col_id", "units"], partitioning=None)
        row, col, x = (table[name].to_numpy() for name in ("row_id", "col_id", "units"))
        rows = np.bincount(row, x, self.size)
        cols = np.bincount(col, x, self.size)
        m = np.maximum(np.log(x * (rows.sum() / rows[row] / cols[col])), 0)
        matrix = csr_matrix((m.astype(np.float32), (row, col)), shape=(self.size, self.size))
        matrix.eliminate_zeros()
        return matrix


def read_side(directory: Path, side: str) -> np.ndarray:
    """Vectors of a side of a result, (n, k)."""
    table = pq.read_table(sorted(map(str, directory.glob(f"{side}-*.parquet"))), partitioning=None)
    return lists_to_matrix(table["vector"])


def sgns(texts: list[str], k: int, threads: int) -> tuple[list[str], np.ndarray]:
    """Skip-gram of gensim: window 10, 5 negatives, 5 epochs, sample 1e-4."""
    from gensim.models import Word2Vec

    documents = [text for path in texts for text in pq.read_table(path, columns=["text"])["text"].to_pylist()]
    # gensim cuts sentences at 10,000 words.
    words = [WORD.findall(text.lower()) for text in documents]
    sentences = [part[at : at + 10_000] for part in words for at in range(0, len(part), 10_000)]
    model = Word2Vec(
        sentences,
        vector_size=k,
        window=10,
        negative=5,
        epochs=5,
        sample=1e-4,
        min_count=5,
        sg=1,
        workers=threads,
        seed=1,
    )
    return model.wv.index_to_key, model.wv.vectors


class Glove:
    """GloVe's C programs on the same text: 15 iterations, x_max 10, window 10, words of five occurrences or more."""

    def __init__(self, build: Path, texts: list[str], directory: Path) -> None:
        self.build, self.directory = build, directory
        write_plain(read_texts(texts), directory / "plain.txt")
        self._run("vocab_count -min-count 5", "plain.txt", "vocab.txt")
        self._run("cooccur -symmetric 1 -window-size 10 -memory 4 -vocab-file vocab.txt", "plain.txt", "cells.bin")
        self._run("shuffle -memory 4", "cells.bin", "shuffled.bin")

    def _run(self, command: str, source: str | None = None, target: str | None = None) -> None:
        program, *options = command.split()
        with (
            open(self.directory / source if source else os.devnull, "rb") as stdin,
            open(self.directory / target if target else os.devnull, "wb") as stdout,
        ):
            line = [str(self.build.resolve() / program), *options, "-verbose", "0"]
            subprocess.run(line, stdin=stdin, stdout=stdout, stderr=subprocess.DEVNULL, cwd=self.directory, check=True)

    def train(self, k: int, threads: int) -> tuple[list[str], np.ndarray]:
        """Words, and the sum of their vectors and context vectors, GloVe's own choice."""
        self._run(
            f"glove -input-file shuffled.bin -vocab-file vocab.txt -save-file vectors -vector-size {k} "
            f"-threads {threads} -iter 15 -x-max 10 -binary 0 -model 2"
        )
        lines = [line.split(" ") for line in (self.directory / "vectors.txt").read_text(encoding="utf-8").splitlines()]
        return [line[0] for line in lines], np.array([line[1:] for line in lines], np.float32)


def half_of(path: str, half: str, directory: str) -> str:
    """A copy of an evaluation file with every other line; section headings stay."""
    if half == "all":
        return path
    kept, number = [], 0
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        if line.startswith(":"):
            kept.append(line)
            continue
        if (number % 2 == 0) == (half == "tune"):
            kept.append(line)
        number += 1
    copy = Path(directory, Path(path).name)
    copy.write_text("\n".join(kept) + "\n", encoding="utf-8")
    return str(copy)


def report(
    name: str, k: int, seconds: float, cpu: float, tokens: Any, matrix: Any, files: list[str], counts: Any
) -> None:
    """One JSON line per file."""
    for result in score_vectors(tokens, matrix, files, counts=counts):
        interval = result.add if isinstance(result, AnalogyResult) else result.rho
        total = result.questions if isinstance(result, AnalogyResult) else result.pairs
        line = {"vectors": name, "k": k, "set": result.name, "score": 100 * interval.value, "low": 100 * interval.low}
        line |= {"high": 100 * interval.high, "covered": result.covered, "of": total, "wall_s": seconds, "cpu_s": cpu}
        print(json.dumps(line), flush=True)


def timed(body: Callable[[], Any]) -> tuple[Any, float, float]:
    """Result, wall seconds, processor seconds of this process and of programs that it runs."""
    before, started = processor_seconds(), time.perf_counter()
    value = body()
    return value, time.perf_counter() - started, processor_seconds() - before


def processor_seconds() -> float:
    """So far, of this process and of its children that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warehouse", required=True)
    parser.add_argument("--batch", default="default")
    parser.add_argument("--evaluate", nargs="+", required=True)
    parser.add_argument("--half", choices=("all", "tune", "report"), default="all")
    parser.add_argument("--k", type=int, nargs="+", default=[100])
    parser.add_argument("--sweeps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--objectives", nargs="*", default=["ppmi"])
    parser.add_argument("--set", default="{}", help="fields of the objectives as JSON")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=[], help="sgns and glove need --texts")
    parser.add_argument("--texts", nargs="*", default=[], help="Parquet files with a column text")
    parser.add_argument("--glove-build", type=Path, help="directory of GloVe's programs")
    arguments = parser.parse_args()
    if {"sgns", "glove"} & set(arguments.peers) and not arguments.texts:
        parser.error("the peers sgns and glove are trained on --texts: give them")
    if "glove" in arguments.peers and not arguments.glove_build:
        parser.error("the peer glove is trained by the programs in --glove-build: give it")
    words = Words(arguments.warehouse, arguments.batch)
    with tempfile.TemporaryDirectory() as directory:
        files = [half_of(path, arguments.half, directory) for path in arguments.evaluate]
        glove = None
        if "glove" in arguments.peers:
            glove = Glove(arguments.glove_build, [os.path.abspath(path) for path in arguments.texts], Path(directory))
        for k in arguments.k:
            compare(words, k, files, arguments, glove)


def compare(words: Words, k: int, files: list[str], arguments: argparse.Namespace, glove: Glove | None) -> None:
    """All vectors of one size."""
    given = json.loads(arguments.set)
    for name in arguments.objectives:
        (u, v), wall, cpu = timed(
            lambda name=name: words.train(name, k, arguments.sweeps, arguments.threads, given)  # type: ignore[misc]
        )
        report(f"{name} U", k, wall, cpu, words.tokens, u, files, words.counts)
        report(f"{name} U+V", k, wall, cpu, words.tokens, u + v, files, words.counts)
    if "svd" in arguments.peers:
        (left, singular, _), wall, cpu = timed(lambda: svds(words.ppmi(), k, random_state=1))
        report("svd of ppmi", k, wall, cpu, words.tokens, left * np.sqrt(singular), files, words.counts)
    if "sgns" in arguments.peers:
        (tokens, matrix), wall, cpu = timed(lambda: sgns(arguments.texts, k, arguments.threads))
        report("sgns", k, wall, cpu, tokens, matrix, files, None)
    if glove is not None:
        (tokens, matrix), wall, cpu = timed(lambda: glove.train(k, arguments.threads))
        report("glove", k, wall, cpu, tokens, matrix, files, None)


if __name__ == "__main__":
    main()
