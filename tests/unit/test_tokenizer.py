from __future__ import annotations

import logging

from tokenizers import Tokenizer, models

from wals_spark.tokenizer import load_tokenizer


def test_dropout_is_set_to_none_with_a_warning(tmp_path, caplog):
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")], dropout=0.5))
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    with caplog.at_level(logging.WARNING):
        loaded = load_tokenizer(str(path)).tokenizer
    assert "BPE dropout 0.5" in caplog.text
    assert {tuple(loaded.encode("abab").ids) for _ in range(50)} == {(2, 2)}


def test_without_dropout_nothing_is_said(tmp_path, caplog):
    path = tmp_path / "tokenizer.json"
    Tokenizer(models.BPE({"a": 0}, [])).save(str(path))
    load_tokenizer(str(path))
    assert caplog.text == ""
