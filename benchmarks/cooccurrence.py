"""Counting speed, beside GloVe's own tools on the same text in the same run.

    python benchmarks/cooccurrence.py --text enwiki/*.parquet --glove-build GloVe/build [--cases kernel,job]

One JSON line per case. Cases:

kernel   the counting kernel on one core, on ids in memory, against ``cooccur`` (tokens per second)
job      read Parquet, split words, vocabulary, count, shuffle, write on local[2], against
         ``vocab_count`` + ``cooccur`` (wall time of the process, with and without the start of the JVM)
job4     the same on the texts four times under new ids
output   bytes per non-zero, write and read rates of the sorted Parquet
memory   largest resident memory of one task with a bound of a tenth of the matrix
encode   tokens per second of the vocabulary stage with a tokenizer, against a plain encode_batch loop

GloVe and ours alternate, so that a slow minute of the machine hits both.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

WORD = re.compile("[a-z]+")
MIN_COUNT = 5
WINDOW = 10


def report(case: str, **facts: Any) -> None:
    """One JSON line; numbers with four digits."""
    shown = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in facts.items()}
    print(json.dumps({"benchmark": "cooccurrence", "case": case, **shown}), flush=True)


def read_texts(paths: list[str]) -> list[str]:
    """The texts of all files, normalised as the corpus stage does: both sides then see the same words."""
    from wals_spark.config import CorpusConfig
    from wals_spark.corpus.clean import clean_batch
    from wals_spark.corpus.read import read_splits
    from wals_spark.corpus.source import InputSplit, list_sources

    config = CorpusConfig(path=paths)
    splits = [InputSplit(file) for file in list_sources(config)]
    batches = (
        clean_batch(batch, config, collections.Counter())
        for batch in read_splits(splits, config, collections.Counter())
    )
    return [batch.text(place).decode() for batch in batches for place in range(len(batch))]


def write_plain(texts: list[str], path: Path) -> None:
    """Lower-cased words, a document per line: what GloVe reads."""
    with path.open("w") as out:
        for text in texts:
            out.write(" ".join(WORD.findall(text.lower())) + "\n")


def word_ids(plain: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """Ids in descending frequency (-1 below the minimum count), document offsets, V."""
    lines = [line.split() for line in plain.read_text().splitlines()]
    counts = collections.Counter(word for line in lines for word in line)
    words = sorted((word for word in counts if counts[word] >= MIN_COUNT), key=lambda word: (-counts[word], word))
    index = {word: number for number, word in enumerate(words)}
    ids = np.fromiter((index.get(word, -1) for line in lines for word in line), np.int32)
    offsets = np.cumsum([0, *(len(line) for line in lines)]).astype(np.int64)
    return ids, offsets, len(words)


def glove(build: Path, plain: Path, directory: Path) -> dict[str, float]:
    """Seconds of vocab_count and cooccur, and the non-zeros."""
    vocabulary, cells = directory / "vocab.txt", directory / "cooccurrence.bin"
    started = time.perf_counter()
    with plain.open() as source, vocabulary.open("w") as out:
        command = [str(build / "vocab_count"), "-min-count", str(MIN_COUNT), "-verbose", "0"]
        subprocess.run(command, stdin=source, stdout=out, stderr=subprocess.DEVNULL, check=True)
    counted = time.perf_counter()
    command = [str(build / "cooccur"), "-symmetric", "1", "-window-size", str(WINDOW), "-memory", "4", "-verbose", "0"]
    with plain.open() as source, cells.open("w") as out:
        subprocess.run(
            [*command, "-vocab-file", str(vocabulary), "-overflow-file", str(directory / "overflow")],
            stdin=source,
            stdout=out,
            stderr=subprocess.DEVNULL,
            check=True,
        )
    ended = time.perf_counter()
    nnz = cells.stat().st_size // 16
    cells.unlink()
    return {"vocab_count_s": counted - started, "cooccur_s": ended - counted, "nnz": nnz}


def kernel(ids: np.ndarray, offsets: np.ndarray, size: int, memory: int = 4 << 30) -> dict[str, float]:
    """Seconds to count into packed rows (as a task does), with GloVe's meaning."""
    from wals_spark.config import CooccurrenceConfig
    from wals_spark.cooccurrence.semantics import semantics_of
    from wals_spark.cooccurrence.window import WindowCounter
    from wals_spark.token_shards import TokenChunk

    semantics = semantics_of(CooccurrenceConfig(preset="glove", window_left=WINDOW, window_right=WINDOW))
    chunk = TokenChunk(ids, offsets, 0, np.zeros(len(offsets) - 1, np.uint64), 0)
    started = time.perf_counter()
    counter = WindowCounter(semantics, size, np.zeros(size, np.int32), memory)
    packed = sum(len(blob.payload) for blob in counter.count(iter([chunk])))
    return {"seconds": time.perf_counter() - started, "nnz": counter.totals.cells, "packed_bytes": packed}


JOB = """
import json, sys, time
started = time.perf_counter()
from wals_spark.config import load_config
from wals_spark.pipeline import load_stage
from wals_spark.progress import setup_logging
from wals_spark.stage import Context, run_stage
config = load_config(None, (), json.loads(sys.argv[1]))
context = Context(config)
context.spark.range(1).count()
ready = time.perf_counter()
seconds = {}
for name in ("corpus", "vocabulary", "cooccurrence"):
    at = time.perf_counter()
    manifest, _ = run_stage(context, load_stage(name))
    seconds[name + "_s"] = time.perf_counter() - at
ended = time.perf_counter()
outputs = manifest.outputs
print(json.dumps({**seconds, "start_s": ready - started, "work_s": ended - ready, "wall_s": ended - started,
                  "nnz": outputs["nnz"], "tokens": outputs["tokens"], "bytes": outputs["bytes"]}))
"""


def job(paths: list[str], directory: Path, cores: int, **flags: Any) -> dict[str, float]:
    """Seconds of the three stages in a process of their own."""
    with tempfile.TemporaryDirectory(dir=directory) as warehouse:
        settings = {
            "warehouse": warehouse,
            "corpus.path": paths,
            "corpus.id_column": "doc_id",
            "corpus.held_out_fraction": 0.0,
            "vocabulary.kind": "words",
            "vocabulary.pattern": WORD.pattern,
            "vocabulary.min_count": MIN_COUNT,
            "cooccurrence.preset": "glove",
            "cooccurrence.boundary": "document",
            "cooccurrence.window_left": WINDOW,
            "cooccurrence.window_right": WINDOW,
            "spark.conf": {"spark.master": f"local[{cores}]", "spark.driver.memory": "3g", "spark.ui.enabled": "false"},
            **flags,
        }
        command = [sys.executable, "-c", JOB, json.dumps(settings)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        return dict(json.loads(done.stdout.splitlines()[-1]))


def repeated(paths: list[str], times: int, directory: Path) -> list[str]:
    """The files again and again under new ids."""
    copies = []
    for number in range(times):
        for path in paths:
            table = pq.read_table(path, columns=["doc_id", "text"])
            ids = pa.array([f"{number}-{name}" for name in table["doc_id"].to_pylist()])
            copies.append(str(directory / f"{number}-{Path(path).name}"))
            pq.write_table(pa.table({"doc_id": ids, "text": table["text"]}), copies[-1], compression="zstd")
    return copies


def alternate(first: Callable[[], dict[str, float]], second: Callable[[], dict[str, float]], times: int) -> Any:
    """Both in turn, `times` times."""
    ours, theirs = [], []
    for _ in range(times):
        ours.append(first())
        theirs.append(second())
    return ours, theirs


def median(runs: list[dict[str, float]], key: str) -> float:
    """The median of one number over runs; the same type where all runs gave the same."""
    values = [run[key] for run in runs]
    return values[0] if len(set(values)) == 1 else float(statistics.median(values))


def case_kernel(arguments: argparse.Namespace, plain: Path, directory: Path) -> None:
    """See the module."""
    ids, offsets, size = word_ids(plain)
    kernel(ids[:1000], np.array([0, 1000]), size)
    ours, theirs = alternate(
        lambda: kernel(ids, offsets, size), lambda: glove(arguments.glove_build, plain, directory), arguments.repeats
    )
    rate = len(ids) / median(ours, "seconds")
    glove_rate = len(ids) / median(theirs, "cooccur_s")
    report(
        "kernel",
        tokens=len(ids),
        vocabulary=size,
        nnz=ours[0]["nnz"],
        glove_nnz=theirs[0]["nnz"],
        seconds=median(ours, "seconds"),
        tokens_per_second=rate,
        glove_cooccur_s=median(theirs, "cooccur_s"),
        glove_tokens_per_second=glove_rate,
        ratio=rate / glove_rate,
        packed_bytes_per_cell=ours[0]["packed_bytes"] / ours[0]["nnz"],
    )


def case_job(arguments: argparse.Namespace, plain: Path, directory: Path, times: int) -> None:
    """See the module."""
    paths, text = arguments.text, plain
    if times > 1:
        paths = repeated(arguments.text, times, directory)
        text = directory / "repeated.txt"
        with text.open("wb") as out:
            for _ in range(times):
                out.write(plain.read_bytes())
    ours, theirs = alternate(
        lambda: job(paths, directory, arguments.cores),
        lambda: glove(arguments.glove_build, text, directory),
        arguments.repeats,
    )
    glove_s = statistics.median(run["vocab_count_s"] + run["cooccur_s"] for run in theirs)
    report(
        "job" if times == 1 else f"job{times}",
        cores=arguments.cores,
        repeats=arguments.repeats,
        **{key: median(ours, key) for key in ours[0]},
        glove_vocab_count_s=median(theirs, "vocab_count_s"),
        glove_cooccur_s=median(theirs, "cooccur_s"),
        glove_nnz=theirs[0]["nnz"],
        ratio=median(ours, "wall_s") / glove_s,
        ratio_without_start=median(ours, "work_s") / glove_s,
    )


def case_output(arguments: argparse.Namespace, plain: Path, directory: Path) -> None:
    """See the module."""
    from wals_spark.cooccurrence.counting import cell_writer
    from wals_spark.cooccurrence.merge import SortedCells

    cells = sorted_cells(plain)
    path = directory / "cells.parquet"
    started = time.perf_counter()
    with cell_writer(str(path)) as write:
        for low in range(0, len(cells), 1 << 20):
            part = slice(low, low + (1 << 20))
            write(SortedCells(cells.rows[part], cells.cols[part], cells.units[part]))
    written = time.perf_counter()
    stored = pq.ParquetFile(path)
    total = 0
    for group in range(stored.num_row_groups):
        total += int(stored.read_row_group(group, use_threads=False)["units"].to_numpy().sum())
    read = time.perf_counter()
    assert total == cells.units.sum()
    report(
        "output",
        nnz=len(cells),
        bytes_per_cell=path.stat().st_size / len(cells),
        cells_written_per_second=len(cells) / (written - started),
        cells_read_per_second=len(cells) / (read - written),
    )


def sorted_cells(plain: Path) -> Any:
    """The whole matrix in memory."""
    from wals_spark.config import CooccurrenceConfig
    from wals_spark.cooccurrence.merge import BlockMerger, SortedCells
    from wals_spark.cooccurrence.semantics import semantics_of
    from wals_spark.cooccurrence.window import WindowCounter
    from wals_spark.token_shards import TokenChunk

    ids, offsets, size = word_ids(plain)
    semantics = semantics_of(CooccurrenceConfig())
    counter = WindowCounter(semantics, size, np.zeros(size, np.int32), 4 << 30)
    chunk = TokenChunk(ids, offsets, 0, np.zeros(len(offsets) - 1, np.uint64), 0)
    blobs = [(blob.rows, blob.payload) for blob in counter.count(iter([chunk]))]
    parts = list(BlockMerger(semantics, size, 4 << 30).merge(iter(blobs)))
    return SortedCells(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("rows", "cols", "units")))


TASK = """
import json, sys, time
import numpy as np
from wals_spark.config import CooccurrenceConfig
from wals_spark.cooccurrence.counting import cell_writer
from wals_spark.cooccurrence.merge import BlockMerger
from wals_spark.cooccurrence.semantics import semantics_of
from wals_spark.cooccurrence.window import WindowCounter
from wals_spark.token_shards import TokenChunk
settings = json.loads(sys.argv[1])
offsets = np.load(settings["offsets"])
size, memory = settings["size"], settings["memory"]
semantics = semantics_of(CooccurrenceConfig())

def status(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

def reset():  # the high-water mark starts again from what is held now
    with open("/proc/self/clear_refs", "w") as out:
        out.write("5")
    return status("VmRSS")

def chunks(source, limit):
    low = 0
    while low < len(offsets) - 1 and offsets[low] < limit:
        high = max(low + 1, int(np.searchsorted(offsets, offsets[low] + (1 << 18), side="right")) - 1)
        ids = np.fromfile(source, np.int32, int(offsets[high] - offsets[low]))
        yield TokenChunk(ids, offsets[low:high + 1] - offsets[low], 0, np.zeros(high - low, np.uint64), 0)
        low = high

def count(limit):
    counter = WindowCounter(semantics, size, np.zeros(size, np.int32), memory)
    listing = []
    with open(settings["ids"], "rb") as source, open(settings["packed"], "wb") as out:
        for blob in counter.count(chunks(source, limit)):
            out.write(blob.payload)
            listing.append((blob.rows, len(blob.payload)))
    return listing, counter.totals

def merge(listing):
    merger = BlockMerger(semantics, size, memory)
    with open(settings["packed"], "rb") as source, cell_writer(settings["out"]) as write:
        for cells in merger.merge((rows, source.read(length)) for rows, length in listing):
            write(cells)
    return merger.totals

merge(count(1)[0])
before = reset()
started = time.perf_counter()
listing, read = count(int(offsets[-1]))
count_grown = status("VmHWM") - before
before = reset()
totals = merge(listing)
print(json.dumps({"seconds": time.perf_counter() - started, "count_grown_bytes": count_grown,
                  "merge_grown_bytes": status("VmHWM") - before, "nnz": totals.cells, "pieces": read.chunks,
                  "spilled_bytes": totals.spilled_bytes}))
"""


def case_memory(arguments: argparse.Namespace, plain: Path, directory: Path) -> None:
    """One counting task, then one merging task, of everything; bounds: the matrix at 16 bytes a cell, and a tenth."""
    ids, offsets, size = word_ids(plain)
    ids.tofile(directory / "ids.bin")
    np.save(directory / "offsets.npy", offsets)
    matrix = 16 * int(kernel(ids, offsets, size)["nnz"])
    for share in (1.0, 0.1):
        settings = {
            "ids": str(directory / "ids.bin"),
            "offsets": str(directory / "offsets.npy"),
            "packed": str(directory / "packed.bin"),
            "out": str(directory / "bounded.parquet"),
            "size": size,
            "memory": int(matrix * share),
        }
        command = [sys.executable, "-c", TASK, json.dumps(settings)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        report("memory", matrix_bytes=matrix, bound_bytes=settings["memory"], **json.loads(done.stdout))


def case_encode(arguments: argparse.Namespace, plain: Path, directory: Path) -> None:
    """See the module."""
    from wals_spark.tokenizer import load_tokenizer

    texts = read_texts(arguments.text[:1])
    tokenizer = load_tokenizer(arguments.tokenizer).tokenizer
    started = time.perf_counter()
    tokens = sum(
        len(encoding.ids)
        for low in range(0, len(texts), 256)
        for encoding in tokenizer.encode_batch(texts[low : low + 256], add_special_tokens=False)
    )
    plain_s = time.perf_counter() - started
    flags = {"vocabulary.kind": "tokenizer", "vocabulary.tokenizer": arguments.tokenizer}
    ours = job(arguments.text[:1], directory, arguments.cores, **flags)
    report(
        "encode",
        cores=arguments.cores,
        tokens=int(ours["tokens"]),
        vocabulary_s=ours["vocabulary_s"],
        tokens_per_second=ours["tokens"] / ours["vocabulary_s"],
        encode_batch_s=plain_s,
        encode_batch_tokens_per_second=tokens / plain_s,
        ratio=(ours["tokens"] / ours["vocabulary_s"]) / (tokens / plain_s),
    )


def main() -> None:
    """Run the cases asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", nargs="+", required=True, help="Parquet files with the columns doc_id and text")
    parser.add_argument("--glove-build", type=Path, help="directory with GloVe's vocab_count and cooccur")
    parser.add_argument("--tokenizer", help="a tokenizer.json or a directory holding one, for the case encode")
    parser.add_argument("--cases", default="kernel,job,job4,output,memory")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scratch", help="where to put temporary files")
    arguments = parser.parse_args()
    cases = arguments.cases.split(",")
    needs_glove = sorted({"kernel", "job", "job4"} & set(cases))
    if needs_glove and not arguments.glove_build:
        parser.error(f"--glove-build is needed for {', '.join(needs_glove)}")
    if "encode" in cases and not arguments.tokenizer:
        parser.error("--tokenizer is needed for encode")
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as name:
        directory = Path(name)
        plain = directory / "text.txt"
        if set(cases) - {"encode"}:
            write_plain(read_texts(arguments.text), plain)
        for case in cases:
            if case in ("job", "job4"):
                case_job(arguments, plain, directory, 4 if case == "job4" else 1)
            else:
                globals()[f"case_{case}"](arguments, plain, directory)
    report("peak", driver_peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


if __name__ == "__main__":
    main()
