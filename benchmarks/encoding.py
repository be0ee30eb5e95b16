"""Tokens per second of the vocabulary stage's encoder beside a plain ``encode_batch`` loop.

    python benchmarks/encoding.py --corpus DIR --tokenizer FILE [--characters 20000000] [--processes 1 2]

One JSON line per case, on the same documents, the cases taking turns (``--rounds``); ``ratio`` is to the plain
loop of the same round. Words (``[a-z]+``, lower case) are timed beside ``re`` in the same way.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor

os.environ["TOKENIZERS_PARALLELISM"] = "false"

from wals_spark.config import CorpusConfig
from wals_spark.corpus.document_batch import DocumentBatch
from wals_spark.corpus.read import read_splits
from wals_spark.corpus.source import InputSplit, list_sources
from wals_spark.corpus.subword_encoder import SubwordEncoder
from wals_spark.corpus.words import WordEncoder
from wals_spark.tokenizer import load_tokenizer

PATTERN = "[a-z]+"
_state: dict[str, SubwordEncoder] = {}


def texts_of(corpus: str, characters: int) -> list[bytes]:
    """The first documents of a corpus."""
    from collections import Counter

    config = CorpusConfig(path=(corpus,))
    found: list[bytes] = []
    held = 0
    for batch in read_splits([InputSplit(file) for file in list_sources(config)], config, Counter()):
        for index in range(len(batch)):
            found.append(batch.text(index))
            held += len(found[-1])
            if held >= characters:
                return found
    return found


def batches(texts: list[bytes], size: int = 4 << 20) -> Iterator[DocumentBatch]:
    """Batches as the stage reads them."""
    part: list[bytes] = []
    held = 0
    for text in texts:
        part.append(text)
        held += len(text)
        if held >= size:
            yield DocumentBatch.from_texts([str(n) for n in range(len(part))], part)
            part, held = [], 0
    if part:
        yield DocumentBatch.from_texts([str(n) for n in range(len(part))], part)


def plain_loop(tokenizer: str, texts: list[bytes]) -> int:
    """What one would write: ``encode_batch`` over lists of a thousand documents, one thread."""
    encoder = load_tokenizer(tokenizer).tokenizer
    decoded = [text.decode() for text in texts]
    return sum(
        len(encoding.ids)
        for start in range(0, len(decoded), 1000)
        for encoding in encoder.encode_batch(decoded[start : start + 1000], add_special_tokens=False)
    )


def _prepare(tokenizer: str) -> None:
    loaded = load_tokenizer(tokenizer)
    _state["encoder"] = SubwordEncoder(loaded.tokenizer.to_str(), loaded.special_ids, len(loaded.tokens))


def _encode(texts: list[bytes]) -> int:
    return sum(len(_state["encoder"].encode(batch).tokens) for batch in batches(texts))


def words_by_re(texts: list[bytes]) -> int:
    """Counting words in plain Python."""
    pattern = re.compile(PATTERN)
    counts: dict[str, int] = {}
    total = 0
    for text in texts:
        for word in pattern.findall(text.decode().lower()):
            counts[word] = counts.get(word, 0) + 1
            total += 1
    return total


def words_by_kernel(texts: list[bytes]) -> int:
    """The word kernel."""
    encoder = WordEncoder(PATTERN, "lower")
    return sum(len(encoder.encode(batch).tokens) for batch in batches(texts))


def timed(work: Callable[[], int]) -> tuple[int, float]:
    """Result and seconds."""
    started = time.perf_counter()
    return work(), time.perf_counter() - started


def main() -> None:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--characters", type=int, default=20_000_000)
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    texts = texts_of(arguments.corpus, arguments.characters)
    size = sum(map(len, texts))
    words_by_kernel(texts[:1])  # compiled before the clock starts
    for turn in range(arguments.rounds):

        def report(case: str, tokens: int, seconds: float, base: float, turn: int = turn) -> None:
            numbers = {"tokens": tokens, "seconds": round(seconds, 3), "tokens_per_s": round(tokens / seconds)}
            rate = {"mb_per_s": round(size / 1e6 / seconds, 2), "ratio": round(base / seconds, 2)}
            print(json.dumps({"case": case, "round": turn, **numbers, **rate}), flush=True)

        tokens, base = timed(lambda: plain_loop(arguments.tokenizer, texts))
        report("encode_batch loop, 1 thread", tokens, base, base)
        for processes in arguments.processes:
            shares = [texts[part::processes] for part in range(processes)]
            with ProcessPoolExecutor(processes, initializer=_prepare, initargs=(arguments.tokenizer,)) as pool:
                list(pool.map(_encode, [texts[:1]] * processes))
                found, seconds = timed(lambda pool=pool, shares=shares: sum(pool.map(_encode, shares)))  # type: ignore[misc]
            if found != tokens:
                raise SystemExit(f"{found} tokens by the encoder, {tokens} by the plain loop")
            report(f"vocabulary stage's encoder, {processes} processes", found, seconds, base)
        words, base = timed(lambda: words_by_re(texts))
        report("words by re, 1 thread", words, base, base)
        found, seconds = timed(lambda: words_by_kernel(texts))
        if found != words:
            raise SystemExit(f"{found} words by the kernel, {words} by re")
        report("words by the kernel, 1 thread", found, seconds, base)


if __name__ == "__main__":
    main()
