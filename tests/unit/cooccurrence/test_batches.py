"""Folding that is done already, which needs no Spark."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from wals_spark.cooccurrence.batches import compact
from wals_spark.errors import InputError
from wals_spark.runs import Manifest, ManifestStore


@pytest.fixture
def context(tmp_path):
    """A warehouse in which a and b are folded into sum, and c is not."""
    store = ManifestStore(str(tmp_path))
    store.write(Manifest("cooccurrence", "sum", "complete", "f", "r", outputs={"folded": ["a", "b"]}))
    store.write(Manifest("cooccurrence", "c", "complete", "f", "r", outputs={}))
    return SimpleNamespace(manifests=store, run=None)


@pytest.mark.parametrize("again", [["a", "b"], ["b"], ["a", "b", "sum"]])
def test_folding_again_is_done_already(context, caplog, again):
    with caplog.at_level("INFO"):
        assert compact(context, "sum", again).outputs["folded"] == ["a", "b"]
    assert "compact: already done by run r" in caplog.text


def test_all_is_done_where_nothing_else_is_there(context, caplog):
    context.manifests.remove("cooccurrence", "c")
    with caplog.at_level("INFO"):
        compact(context, "sum", ["all"])
    assert "already done" in caplog.text


def test_a_batch_that_was_never_folded_is_missing(context):
    with pytest.raises(InputError, match="there is no complete batch a, d"):
        compact(context, "sum", ["a", "d"])
