from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from wals_spark.corpus.boilerplate import LineCounter, frequent_lines, remove_lines
from wals_spark.corpus.document_batch import DocumentBatch
from wals_spark.corpus.words import WordEncoder


def to_batch(texts):
    return DocumentBatch.from_texts([str(n) for n in range(len(texts))], [text.encode() for text in texts])


MENU = "Home | About | Contact"


def documents_with_menu(number):
    return [f"{MENU}\ntext {n}\n\n{MENU}\nend {n % 2}" for n in range(number)]


@pytest.mark.parametrize("batches", [1, 3])
def test_lines_of_many_documents_are_found_once_per_document(batches):
    texts = [*documents_with_menu(6), "text 0\nother"]
    payloads = []
    for part in range(batches):
        counter = LineCounter()
        counter.add(to_batch(texts[part::batches]))
        payloads += [record.payload for record in counter.records(1)]
    encoder = WordEncoder(r"[^\n]+", "keep")
    encoder.encode(to_batch([f"{MENU}\nend 0\nend 1\ntext 0"]))
    hashes = dict(zip(encoder.words(), encoder.hashes.tolist(), strict=True))
    assert frequent_lines(payloads, 6).tolist() == [hashes[MENU]]
    assert set(frequent_lines(payloads, 3)) == {hashes[MENU], hashes["end 0"], hashes["end 1"]}
    assert hashes["text 0"] in frequent_lines(payloads, 2)


def test_boilerplate_lines_are_removed_and_counted():
    counter = LineCounter()
    texts = [*documents_with_menu(4), "", "only this"]
    counter.add(to_batch(texts))
    lines = np.sort(frequent_lines([record.payload for record in counter.records(1)], 4))
    counts: Counter[str] = Counter()
    cleaned = remove_lines(to_batch(texts), lines, counts)
    assert [cleaned.text(n).decode() for n in range(6)] == [
        *(f"text {n}\n\nend {n % 2}" for n in range(4)),
        "",
        "only this",
    ]
    assert counts["boilerplate_lines"] == 8
    assert counts["documents_with_boilerplate"] == 4
