"""Mode ``transfer``: a checkpoint with another tokenizer, through the writer and verify."""

from __future__ import annotations

import json
from typing import get_args

import numpy as np
import pytest
from inject_models import SPECIAL, TEXT, train_tokenizer
from tokenizers import Tokenizer, processors

from wals_spark.checkpoints import artifact, atomic_directory
from wals_spark.checkpoints.checkpoint import embedding_values, open_checkpoint
from wals_spark.checkpoints.edit import TokenFactors
from wals_spark.checkpoints.raw_tensor import replace_rows
from wals_spark.checkpoints.safetensors_file import read_raw_tensors, write_raw_tensors
from wals_spark.config import InjectConfig
from wals_spark.errors import ConfigError, InputError
from wals_spark.factors.store import Vectors
from wals_spark.inject.prepare import prepare_edit
from wals_spark.inject.transfer import Transfer, transfer_edit
from wals_spark.inject.verify import verify_injection
from wals_spark.tokenizer import load_tokenizer

EMBEDDING, BIAS = "roberta.embeddings.word_embeddings.weight", "lm_head.bias"
DOMAIN = (
    "the acute patients received a daily dose of tablets and blood samples were taken before treatment under the same "
    "protocol while chronic lesions in the lung and renal arteries were measured by nurses in hospitals on the hills"
)
METHODS = get_args(InjectConfig.model_fields["transfer_rows"].annotation)


def numbered(model):
    model.lm_head.bias.copy_(model.lm_head.bias.new_tensor(range(400)) / 99)


@pytest.fixture(scope="session")
def domain_tokenizer():
    """A tokenizer of other text, 380 tokens: bytes and common pieces are shared."""
    return train_tokenizer(380, DOMAIN)


@pytest.fixture
def save_tokenizer(tmp_path):
    """Write a tokenizer to a directory of its own."""

    def save(tokenizer, name="new"):
        (tmp_path / name).mkdir()
        tokenizer.save(str(tmp_path / name / "tokenizer.json"))
        return tmp_path / name

    return save


@pytest.fixture
def transferred(tmp_path, make_config):
    """Run the mode with given counts and factors; random ones where none are given."""

    def run(base, tokenizer, counts=None, name="out", **values):
        tokens = load_tokenizer(str(tokenizer)).tokens
        generator = np.random.default_rng(1)
        counts = generator.integers(1, 1000, len(tokens)) if counts is None else counts
        matrix = generator.standard_normal((len(tokens), 6)).astype(np.float32)
        settings = {
            "inject__mode": "transfer",
            "inject__checkpoint": str(base),
            "inject__gate": False,
            "vocabulary__tokenizer": str(tokenizer),
        }
        config = make_config(**{**settings, **values})
        prepared, edit, factors = prepare_edit(
            config, Vectors(list(tokens), counts, matrix, np.zeros(len(tokens), np.float32))
        )
        described = {
            "mode": "transfer",
            "parameters": {"seed": config.seed, **config.inject.result_keys()},
            "factors": None,
        }
        with atomic_directory.staged_directory(str(tmp_path / name), replace=False) as staging:
            artifact.write_artifact(staging, prepared, edit, factors, described)
        return tmp_path / name, edit

    return run


@pytest.mark.parametrize("how", METHODS)
def test_every_method_transfers_and_verifies(make_checkpoint, domain_tokenizer, save_tokenizer, transferred, how):
    base, new = make_checkpoint(edit=numbered), save_tokenizer(domain_tokenizer)
    directory, edit = transferred(base, new, inject__transfer_rows=how)
    report = verify_injection(directory, str(base), reload=how == "factors")
    assert report.failures == []
    found, old = open_checkpoint(str(directory)), open_checkpoint(str(base))
    assert found.vocab_size == found.config["vocab_size"] == 380 != old.vocab_size
    shared, tokens = edit.origin >= 0, load_tokenizer(str(base)).tokens
    assert 256 < shared.sum() < 380
    assert np.array_equal(found.tensors[EMBEDDING].rows[shared], old.tensors[EMBEDDING].rows[edit.origin[shared]])
    assert np.array_equal(found.tensors[BIAS].rows[shared], old.tensors[BIAS].rows[edit.origin[shared]])
    assert [tokens[index] for index in edit.origin[shared]] == [
        token for token, same in zip(load_tokenizer(str(new)).tokens, shared, strict=True) if same
    ]
    assert np.isfinite(embedding_values(found)).all()
    others = [name for name in old.tensors if name not in (EMBEDDING, BIAS)]
    assert all(old.tensors[name].same_bytes(found.tensors[name]) for name in others)


def test_transformers_reads_the_new_tokenizer_and_the_model_computes(
    make_checkpoint, domain_tokenizer, save_tokenizer, transferred
):
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    base, new = make_checkpoint(), save_tokenizer(domain_tokenizer)
    directory, _ = transferred(base, new)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    ids = tokenizer("the acute patients")["input_ids"]
    assert ids == domain_tokenizer.encode("the acute patients").ids
    assert (tokenizer.mask_token_id, tokenizer.pad_token_id, tokenizer.cls_token_id) == (4, 1, 0)
    with torch.no_grad():
        logits = AutoModelForMaskedLM.from_pretrained(directory)(torch.tensor([ids])).logits
    assert logits.shape == (1, len(ids), 380)
    assert torch.isfinite(logits).all()


def test_special_ids_of_the_configuration_are_renumbered(make_checkpoint, save_tokenizer, transferred):
    base = make_checkpoint(class_name="BertForMaskedLM", pad_token_id=1, edit=None)
    tokenizer = train_tokenizer(300, DOMAIN)
    content = json.loads(tokenizer.to_str())
    content["model"]["vocab"] |= {"</s>": 4, "<mask>": 2}
    for added in content["added_tokens"]:
        added["id"] = content["model"]["vocab"][added["content"]]
    content["post_processor"]["sep"] = ["</s>", 4]
    directory, edit = transferred(base, save_tokenizer(Tokenizer.from_str(json.dumps(content))))
    config = open_checkpoint(str(directory)).config
    assert {name: config[name] for name in ("bos_token_id", "pad_token_id", "eos_token_id", "vocab_size")} == {
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 4,
        "vocab_size": 300,
    }
    assert edit.origin[:5].tolist() == [0, 1, 4, 3, 2]


def test_a_tokenizer_of_the_same_tokens_gives_the_same_rows_in_another_order(
    make_checkpoint, save_tokenizer, transferred
):
    base = make_checkpoint(edit=numbered)
    smaller = train_tokenizer(330)  # the first merges of the base's 400 tokens
    directory, edit = transferred(base, save_tokenizer(smaller))
    assert (edit.origin >= 0).all()
    assert len(edit.ids) == 0
    assert verify_injection(directory, str(base), reload=False).failures == []


def test_a_larger_vocabulary_than_the_base(make_checkpoint, save_tokenizer, transferred):
    base = make_checkpoint(edit=numbered)
    directory, edit = transferred(base, save_tokenizer(train_tokenizer(480, TEXT + " " + DOMAIN)))
    assert len(edit.origin) > 400
    assert open_checkpoint(str(directory)).vocab_size == len(edit.origin)
    assert verify_injection(directory, str(base), reload=False).failures == []


def test_a_new_token_that_the_corpus_lacks_gets_the_mean_of_its_pieces(
    make_checkpoint, domain_tokenizer, save_tokenizer, transferred
):
    base, new = make_checkpoint(), save_tokenizer(domain_tokenizer)
    _, first = transferred(base, new, name="a")
    counts = np.full(380, 50)
    counts[first.ids[-1]] = 0
    _, edit = transferred(base, new, counts, name="b")
    old, E = load_tokenizer(str(base)), embedding_values(open_checkpoint(str(base)))
    token = domain_tokenizer.id_to_token(int(first.ids[-1]))
    pieces = [piece.id for piece in old.tokenizer.model.tokenize(token)]
    np.testing.assert_allclose(edit.rows[-1], E[pieces].mean(axis=0), rtol=1e-5, atol=1e-7)


def test_the_head_bias_of_new_tokens_follows_frequency(make_checkpoint, domain_tokenizer, save_tokenizer, transferred):
    base, new = make_checkpoint(), save_tokenizer(domain_tokenizer)
    counts = np.random.default_rng(4).integers(30, 5000, 380)
    tokens = load_tokenizer(str(base)).tokens
    by_token = dict(zip(load_tokenizer(str(new)).tokens, counts, strict=True))
    bias = np.array([2 + 0.5 * np.log(by_token.get(token, 0) + 0.5) for token in tokens], np.float32)
    base = make_checkpoint("second", edit=lambda model: model.lm_head.bias.copy_(model.lm_head.bias.new_tensor(bias)))
    _, edit = transferred(base, new, counts)
    np.testing.assert_allclose(edit.head_bias[edit.ids], 2 + 0.5 * np.log(counts[edit.ids] + 0.5), rtol=1e-4)


def test_a_row_of_a_shared_token_that_was_changed_is_caught(
    make_checkpoint, domain_tokenizer, save_tokenizer, transferred
):
    base, new = make_checkpoint(), save_tokenizer(domain_tokenizer)
    directory, edit = transferred(base, new)
    tensors, metadata = read_raw_tensors(directory / "model.safetensors")
    tensors = {name: type(t)(t.dtype, t.shape, t.data.copy()) for name, t in tensors.items()}
    row = np.flatnonzero(edit.origin >= 0)[20]
    values = tensors[EMBEDDING].values()[row : row + 1] + 1
    tensors[EMBEDDING] = replace_rows(tensors[EMBEDDING], np.array([row]), values)
    write_raw_tensors(directory / "model.safetensors", tensors, metadata)
    failed = {check.name for check in verify_injection(directory, str(base), reload=False).checks if not check.passed}
    assert {"tensors", "rows", "base rows", "computed rows"} <= failed


def test_no_shared_token_is_refused(make_checkpoint, tmp_path, transferred):
    from inject_models import wordpiece_json

    base = make_checkpoint()
    content = wordpiece_json(["the", "##s", "a"], special=SPECIAL)
    content["post_processor"] = json.loads((base / "tokenizer.json").read_text())["post_processor"]
    content["model"]["unk_token"] = "<unk>"
    (tmp_path / "other.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"shares no token .*WordPiece ## strings, expected byte-level"):
        transferred(base, tmp_path / "other.json")


@pytest.mark.parametrize("missing", ["<mask>", "<s>", "<pad>"])
def test_a_missing_special_token_is_refused(make_checkpoint, tmp_path, transferred, missing):
    base = make_checkpoint()
    content = json.loads(train_tokenizer(300, DOMAIN).to_str())
    content["model"]["vocab"][missing + "!"] = content["model"]["vocab"].pop(missing)
    for added in content["added_tokens"]:
        if added["content"] == missing:
            added["content"] = missing + "!"
    if missing == "<s>":
        content["post_processor"]["cls"][0] = "<s>!"
    (tmp_path / "other.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"has no .*_token \({missing}\)"):
        transferred(base, tmp_path / "other.json")


def test_another_padding_id_is_refused_where_positions_count_from_it(make_checkpoint, tmp_path, transferred):
    base = make_checkpoint()
    content = json.loads(train_tokenizer(300, DOMAIN).to_str())
    content["model"]["vocab"] |= {"<pad>": 3, "<unk>": 1}
    for added in content["added_tokens"]:
        added["id"] = content["model"]["vocab"][added["content"]]
    (tmp_path / "other.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="has id 3, expected 1"):
        transferred(base, tmp_path / "other.json")


def test_a_tokenizer_that_frames_no_text_is_refused(make_checkpoint, save_tokenizer, transferred):
    tokenizer = train_tokenizer(300, DOMAIN)
    tokenizer.post_processor = processors.ByteLevel()
    with pytest.raises(InputError, match="puts nothing around a text"):
        transferred(make_checkpoint(), save_tokenizer(tokenizer))


def test_too_few_frequent_shared_tokens_are_refused(make_checkpoint, domain_tokenizer, save_tokenizer, transferred):
    with pytest.raises(InputError, match=r"0 of \d+ shared tokens occur 20 times or more"):
        transferred(make_checkpoint(), save_tokenizer(domain_tokenizer), np.ones(380, np.int64))


def test_no_tokenizer_is_refused(make_checkpoint, make_config):
    config = make_config(inject__mode="transfer", inject__checkpoint=str(make_checkpoint()))
    with pytest.raises(ConfigError, match="names no tokenizer to go to"):
        prepare_edit(config, Vectors([], np.zeros(0, np.int64), np.zeros((0, 2), np.float32), np.zeros(0)))


@pytest.mark.parametrize("how", ["focus", "omp", "subtokens"])
def test_anchors_of_equal_factors_and_rows_give_finite_rows(how):
    origin = np.array([0, 1, 2, 3, -1, -1])
    plan = Transfer(origin, np.array([0]), [np.array([1, 2]), np.zeros(0, np.int64)], {}, {})
    factors = TokenFactors(np.ones((6, 3), np.float32), np.full(6, 30))
    E = np.arange(8, dtype=np.float32).reshape(4, 2)
    edit = transfer_edit(plan, factors, E, np.zeros(4), [0], InjectConfig(transfer_rows=how), 1)
    assert np.isfinite(edit.rows).all()
    assert edit.ids.tolist() == [4, 5]
    assert np.isfinite(edit.head_bias).all()
