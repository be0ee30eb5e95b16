"""Delta tables that Spark writes, with the features that it has, as a corpus."""

from __future__ import annotations

from collections import Counter

import pytest

from wals_spark.config import CorpusConfig
from wals_spark.corpus.read import read_splits
from wals_spark.corpus.source import InputSplit, list_sources

pytestmark = [pytest.mark.spark, pytest.mark.delta]

FEATURES = {
    "plain": "'delta.minReaderVersion' = '1'",
    "deletion vectors": "'delta.enableDeletionVectors' = 'true'",
    "column mapping": "'delta.columnMapping.mode' = 'name', 'delta.minReaderVersion' = '2', "
    "'delta.minWriterVersion' = '5'",
    "V2 checkpoints": "'delta.checkpointPolicy' = 'v2', 'delta.checkpointInterval' = '2'",
    "all": "'delta.enableDeletionVectors' = 'true', 'delta.columnMapping.mode' = 'name', "
    "'delta.checkpointPolicy' = 'v2', 'delta.checkpointInterval' = '2'",
}


@pytest.mark.parametrize("features", FEATURES)
def test_the_rows_are_those_that_spark_reads(make_context, tmp_path, features):
    session = make_context(table_format="delta").spark
    name = f"delta.`{tmp_path / 'table'}`"
    session.sql(f"CREATE TABLE {name} (id string, text string) USING delta TBLPROPERTIES ({FEATURES[features]})")
    rows = ", ".join(f"('{number}', 'text\u2028{number}')" for number in range(20))
    session.sql(f"INSERT INTO {name} SELECT /*+ COALESCE(1) */ * FROM VALUES {rows}")
    session.sql(f"DELETE FROM {name} WHERE id IN ('3', '17')")
    if features in ("column mapping", "all"):
        session.sql(f"ALTER TABLE {name} RENAME COLUMN text TO old")
        session.sql(f"ALTER TABLE {name} RENAME COLUMN id TO text")
        session.sql(f"ALTER TABLE {name} RENAME COLUMN old TO id")
    session.sql(f"INSERT INTO {name} VALUES ('20', 'more')")
    session.sql(f"DELETE FROM {name} WHERE id = '5' OR text = '5'")
    expected = sorted((row.id, row.text) for row in session.sql(f"SELECT id, text FROM {name}").collect())
    config = CorpusConfig(path=str(tmp_path / "table"), id_column="id")
    splits = [InputSplit(file) for file in list_sources(config)]
    found = sorted(
        (name, batch.text(index).decode())
        for batch in read_splits(splits, config, Counter())
        for index, name in enumerate(batch.ids)
    )
    assert found == expected
    assert len(found) == 18
