from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from wals_spark.errors import InputError
from wals_spark.factors.export import escape, export_safetensors, export_vectors, unescape, word2vec_tokens
from wals_spark.factors.store import Vectors


@pytest.fixture
def vectors():
    generator = np.random.default_rng(0)
    tokens = ["Ġthe", "cat", "<pad>", "été", "日本", "Ġrare"]
    counts = np.array([50, 70, 0, 50, 3, 1])
    matrix = generator.normal(size=(6, 5)).astype(np.float32) * np.float32(1e-3) ** np.arange(6)[:, None]
    return Vectors(tokens, counts, matrix.astype(np.float32), np.arange(6, dtype=np.float32))


def write(directory, vectors, formats, **options):
    settings = {"min_count": 1, "white_space": "refuse", "metadata": {"run_id": "r"}, **options}
    return export_vectors(str(directory), "vectors", vectors, formats, **settings)


@pytest.mark.parametrize(("kind", "binary"), [("word2vec", False), ("word2vec_binary", True)])
def test_gensim_reads_the_same_bits_back(tmp_path, vectors, kind, binary):
    models = pytest.importorskip("gensim.models", reason="gensim is in the benchmark extra")
    (path,) = write(tmp_path, vectors, [kind])
    loaded = models.KeyedVectors.load_word2vec_format(path, binary=binary)
    assert loaded.index_to_key == ["cat", "Ġthe", "été", "日本", "Ġrare"]
    for token in loaded.index_to_key:
        assert np.array_equal(loaded[token], vectors.matrix[vectors.tokens.index(token)])


def test_word2vec_text_is_the_plain_format(tmp_path, vectors):
    (path,) = write(tmp_path, vectors, ["word2vec"], min_count=60)
    header, line = Path(path).read_text(encoding="utf-8").splitlines()
    assert header == "1 5"
    token, *numbers = line.split(" ")
    assert token == "cat"
    assert np.array_equal(np.array(numbers, np.float32), vectors.matrix[1])


def test_word2vec_binary_is_the_plain_format(tmp_path, vectors):
    (path,) = write(tmp_path, vectors, ["word2vec_binary"], min_count=60)
    assert Path(path).read_bytes() == b"1 5\ncat " + vectors.matrix[1].astype("<f4").tobytes() + b"\n"


def test_safetensors_and_npy_keep_every_id_in_its_place(tmp_path, vectors):
    paths = write(tmp_path, vectors, ["safetensors", "npy"])
    assert [path.rpartition("/")[2] for path in paths] == ["vectors.safetensors", "vectors.npy", "tokens.json"]
    with safe_open(paths[0], "np") as opened:
        assert np.array_equal(opened.get_tensor("vectors"), vectors.matrix)
        assert opened.get_tensor("counts").tolist() == vectors.counts.tolist()
        assert opened.get_tensor("bias").tolist() == vectors.bias.tolist()
        assert opened.metadata()["run_id"] == "r"
    assert np.array_equal(np.load(paths[1], allow_pickle=False), vectors.matrix)
    assert json.loads(Path(paths[2]).read_bytes()) == vectors.tokens


def test_white_space_in_tokens_is_refused_with_the_way_out():
    with pytest.raises(InputError, match=r"2 tokens hold white space.*'new york', 'a\\xa0b'.*export.white_space"):
        word2vec_tokens(["new york", "a\u00a0b", "fine"], "refuse")


def test_escaped_tokens_can_be_undone():
    tokens = ["new york", "a\u2028b", "back\\slash", "plain", "\\u0020é"]
    written = word2vec_tokens(tokens, "escape")
    assert written == ["new\\u0020york", "a\\u2028b", "back\\\\slash", "plain", "\\\\u0020é"]
    assert not any(c.isspace() for token in written for c in token)
    assert [unescape(token) for token in written] == tokens


def test_without_white_space_nothing_is_escaped():
    assert word2vec_tokens(["a\\b", "c"], "escape") == ["a\\b", "c"]
    assert escape("a b") == "a\\u0020b"


@pytest.mark.parametrize(("token", "message"), [("", "empty token"), ("\udc80", "no Unicode text")])
def test_tokens_no_word2vec_file_can_hold_are_refused(token, message):
    with pytest.raises(InputError, match=message):
        word2vec_tokens(["fine", token], "escape")


def test_nothing_left_to_write_is_an_error(tmp_path, vectors):
    with pytest.raises(InputError, match=r"lower export\.min_count"):
        write(tmp_path, vectors, ["word2vec"], min_count=1000)


def test_no_partial_file_is_left(tmp_path, vectors):
    write(tmp_path, vectors, ["word2vec", "word2vec_binary", "safetensors", "npy"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "tokens.json",
        "vectors.bin",
        "vectors.npy",
        "vectors.safetensors",
        "vectors.txt",
    ]


def test_an_export_is_the_same_bytes_whatever_the_order_of_its_metadata(tmp_path, vectors):
    metadata = {f"key{number}": f"value {number} \u00e9" for number in range(12)}
    export_safetensors(str(tmp_path / "a.safetensors"), vectors, metadata)
    export_safetensors(str(tmp_path / "b.safetensors"), vectors, dict(reversed(metadata.items())))
    content = (tmp_path / "a.safetensors").read_bytes()
    assert content == (tmp_path / "b.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert list(header["__metadata__"]) == sorted(metadata)
    with safe_open(tmp_path / "a.safetensors", "numpy") as file:
        assert file.metadata() == metadata
        assert np.array_equal(file.get_tensor("vectors"), vectors.matrix)
