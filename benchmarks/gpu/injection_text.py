"""Token ids of the texts that `injection.py` measures on: cut, sampled, split by document, as small files.

A domain's file holds its training sample and its test sequences; the general text's file holds more training sequences.
Sequences lie in the order of their sampling hash, so that the first n are the sample of size n.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from wals_spark.errors import InputError
from wals_spark.mlm.data import encode
from wals_spark.mlm.text_sequences import TextSequences, cut_documents, smallest_sequences
from wals_spark.splitmix64 import hash_words
from wals_spark.tokenizer import LoadedTokenizer

GENERAL = "general"
TEST_SHARE = 0.2
SAMPLE_SEED = 1
TEST_SEED = 2
_TEST = 0x74657374
"""Keeps the split into training and test documents apart from other hashes of a document."""
_TOKENS = "tokens", "offsets", "document", "start"


@dataclass(frozen=True)
class SplitText:
    """A text's sequences: what may be trained on, and what is tested on, of other documents."""

    training: TextSequences
    test: TextSequences
    facts: dict[str, str]


def read_texts(paths: Sequence[Path], column: str = "text") -> Iterator[str]:
    """The texts of Parquet files, a batch in memory at a time."""
    import pyarrow.parquet as pq

    for path in paths:
        for batch in pq.ParquetFile(path).iter_batches(1024, columns=[column]):
            yield from (text for text in batch.column(0).to_pylist() if text)


def distinct_texts(texts: Iterator[str]) -> tuple[list[str], np.ndarray]:
    """Texts without exact duplicates, and a hash of each as its document's key, uint64."""
    found: dict[int, str] = {}
    for text in texts:
        key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
        found.setdefault(key, text)
    return list(found.values()), np.array(list(found), np.uint64)


def is_test_document(document: np.ndarray) -> np.ndarray:
    """Whether a document, by its key, is one to test on: its hash is below `TEST_SHARE` of all hashes."""
    return hash_words(_TEST, document) < np.uint64(TEST_SHARE * 2.0**64)


def split_text(texts: Iterator[str], tokenizer: LoadedTokenizer, length: int, train: int, test: int) -> SplitText:
    """Cut, split and sample a text.

    Parameters
    ----------
    texts : iterator of str
        Documents.
    tokenizer : LoadedTokenizer
        Of the checkpoint.
    length : int
        Tokens of a sequence, its two special ones included.
    train, test : int
        Sequences at most.

    Returns
    -------
    SplitText
        No test sequence has the tokens of a training sequence.
    """
    kept, keys = distinct_texts(texts)
    if not kept:
        raise InputError("the corpus holds no text: name Parquet files with a column `text`")
    encoded = encode(tokenizer, kept)
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in encoded])]).astype(np.int64)
    pieces = cut_documents(np.concatenate(encoded), offsets, keys, length)
    held = is_test_document(pieces.document)
    training, tests = pieces.take(~held), pieces.take(held)
    known = {training.piece(index).tobytes() for index in range(len(training))}
    new = np.array([tests.piece(index).tobytes() not in known for index in range(len(tests))], bool)
    facts = {
        "documents": str(len(kept)), "tokens": str(offsets[-1]), "pieces": str(len(pieces)),
        "test_documents": str(int(is_test_document(keys).sum())), "length": str(length),
    }  # fmt: skip
    return SplitText(
        smallest_sequences(training, train, SAMPLE_SEED),
        smallest_sequences(tests.take(new), test, TEST_SEED),
        facts,
    )


def write_split(path: Path, text: SplitText) -> None:
    """Leave a text's sequences as a safetensors file."""
    arrays = {
        f"{name}.{field}": np.ascontiguousarray(getattr(part, field))
        for name, part in (("training", text.training), ("test", text.test))
        for field in _TOKENS
    }
    save_file(arrays, path, {"facts": json.dumps(text.facts)})


def read_split(path: Path) -> SplitText:
    """What `write_split` left."""
    if not path.is_file():
        raise InputError(f"there is no {path}: run `injection.py prepare` with the domain first")
    with safe_open(path, "numpy") as file:
        training, test = (
            TextSequences(*(file.get_tensor(f"{name}.{field}") for field in _TOKENS)) for name in ("training", "test")
        )
        return SplitText(training, test, json.loads(file.metadata()["facts"]))
