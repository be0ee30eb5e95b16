"""Files of documents, cut by size and written again without dropped rows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wals_spark.corpus import writing
from wals_spark.corpus.duplicate_ids import write_drop_lists
from wals_spark.corpus.writing import DocumentWriter, WrittenFiles, read_document_file, remove_temporary

IDS = [f"d{n}" for n in range(20)]
TEXTS = [f"text number {n:02d}" for n in range(20)]


@pytest.fixture
def written(tmp_path, monkeypatch):
    """20 documents of 14 bytes in row groups of 2 and files of 6."""
    monkeypatch.setattr(writing, "ROW_GROUP_BYTES", 28)
    monkeypatch.setattr(writing, "FILE_BYTES", 84)
    writer = DocumentWriter(str(tmp_path), "part-00003")
    for name, text in zip(IDS, TEXTS, strict=True):
        writer.write([name], pa.array([text]), np.array([name in ("d1", "d7")]))
    writer.close()
    return {3: WrittenFiles(writer.files, {})}


def found(directory, entries):
    return {
        name: batch.text(at).decode()
        for entry in entries
        for batch in read_document_file(str(directory / entry["name"]))
        for at, name in enumerate(batch.ids)
    }


def test_files_and_row_groups_are_cut_by_bytes_of_text(tmp_path, written):
    entries = written[3].files
    assert [entry["name"] for entry in entries] == [f"part-00003-00{n}.parquet" for n in range(4)]
    assert [entry["documents"] for entry in entries] == [6, 6, 6, 2]
    assert [entry["held_out"] for entry in entries] == [1, 1, 0, 0]
    assert [entry["text_bytes"] for entry in entries] == [84, 84, 84, 28]
    assert pq.read_metadata(tmp_path / entries[0]["name"]).num_row_groups == 3
    assert found(tmp_path, entries) == dict(zip(IDS, TEXTS, strict=True))


def test_only_files_with_dropped_rows_are_written_again(tmp_path, written):
    work = str(tmp_path / "work")
    write_drop_lists(work, np.array([3, 3]), np.array([1, 12]), "a")
    write_drop_lists(work, np.array([3]), np.array([13]), "b")
    (record,) = writing._without_rows([3], written, str(tmp_path), work, 0)
    again = WrittenFiles.load(record.payload)
    assert [entry["name"] for entry in again.files] == [
        "part-00003-000-000.parquet",
        "part-00003-001.parquet",
        "part-00003-002-000.parquet",
        "part-00003-003.parquet",
    ]
    assert [entry["held_out"] for entry in again.files] == [0, 1, 0, 0]
    left = {name: text for name, text in zip(IDS, TEXTS, strict=True) if name not in ("d1", "d12", "d13")}
    assert found(tmp_path, again.files) == left


def test_what_a_killed_attempt_left_is_removed(tmp_path, written):
    (tmp_path / "_tmp-0000-part-00009-000.parquet").write_bytes(b"PAR1")
    remove_temporary(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [entry["name"] for entry in written[3].files]
