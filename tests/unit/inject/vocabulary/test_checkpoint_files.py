"""Vocabulary changes of checkpoints whose files name special tokens in odd places, through verify."""

from __future__ import annotations

import json

import numpy as np
import pytest
from inject_models import TEXT
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from wals_spark.checkpoints import artifact
from wals_spark.checkpoints.checkpoint import checkpoint_tokenizer
from wals_spark.errors import InputError
from wals_spark.factors.store import Vectors
from wals_spark.inject.prepare import prepare_edit
from wals_spark.inject.verify import verify_injection
from wals_spark.inject.vocabulary.extend import extend_tokenizer
from wals_spark.tokenizer import load_tokenizer

WORDS = TEXT.split()
LINES = [" ".join(np.random.default_rng(seed).choice(WORDS, 12)) for seed in range(300)]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def prefixed_bpe():
    """BPE whose pieces inside a word are marked as WordPiece marks them."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", continuing_subword_prefix="##"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=200, special_tokens=SPECIAL, show_progress=False, continuing_subword_prefix="##"
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


def suffixed_bpe():
    """BPE whose last piece of a word has a mark, as in openai-gpt and XLM."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=200, special_tokens=SPECIAL, show_progress=False, end_of_word_suffix="</w>"
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


KINDS = {"prefix": prefixed_bpe, "suffix": suffixed_bpe}


@pytest.fixture
def with_tokenizer(make_checkpoint):
    """A checkpoint with another tokenizer, loaded as it is by AutoTokenizer."""

    def make(tokenizer):
        base = make_checkpoint(vocab_size=tokenizer.get_vocab_size())
        tokenizer.save(str(base / "tokenizer.json"))
        named = {
            "bos": "<s>",
            "eos": "</s>",
            "unk": "<unk>",
            "pad": "<pad>",
            "mask": "<mask>",
            "cls": "<s>",
            "sep": "</s>",
        }
        described = {f"{name}_token": token for name, token in named.items()}
        (base / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **described})
        )
        return base

    return make


@pytest.fixture
def run(make_config, tmp_path):
    """Trim to the tokens of texts, or extend; returns the directory and injection.json."""

    def apply(base, mode, tokenizer=None, texts=LINES[:40]):
        source = tokenizer or base
        loaded = load_tokenizer(str(source))
        counts = np.zeros(len(loaded.tokens), np.int64)
        for encoding in loaded.tokenizer.encode_batch(texts, add_special_tokens=False):
            np.add.at(counts, encoding.ids, 1)
        values = {"inject__extend_rows": "subtokens", "inject__anchor_min_count": 1}
        config = make_config(
            inject__mode=mode, inject__checkpoint=str(base), vocabulary__tokenizer=str(source), **values
        )
        matrix = np.zeros((len(counts), 4), np.float32)
        edit = prepare_edit(config, Vectors(list(loaded.tokens), counts, matrix, np.zeros(len(counts), np.float32)))
        described = {"mode": mode, "parameters": {"seed": 1, **config.inject.result_keys()}, "factors": None}
        (tmp_path / "out").mkdir()
        return tmp_path / "out", artifact.write_artifact(tmp_path / "out", *edit, described)

    return apply


def checks(directory, base, texts=()):
    report = verify_injection(directory, str(base), reload=False, texts=texts)
    assert report.failures == []
    return {check.name: check.detail for check in report.checks}


@pytest.mark.parametrize("kind", KINDS)
def test_trim_keeps_the_merges_of_marked_pieces(with_tokenizer, run, kind):
    base = with_tokenizer(KINDS[kind]())
    few = [line for line in LINES if "harbours" not in line][:20]
    directory, manifest = run(base, "trim", texts=few)
    assert manifest["embedding"]["dropped_rows"] > 0
    assert checks(directory, base, few)["segmentation"] == (
        f"of {len(few)} texts {len(few)} segment as with the base, 0 hold dropped tokens"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_words_can_be_added_to_marked_pieces(with_tokenizer, run, kind, tmp_path):
    base = with_tokenizer(KINDS[kind]())
    old = load_tokenizer(str(base))
    pieces = old.tokenizer.encode("dogsails", add_special_tokens=False).tokens
    assert len(pieces) > 1
    content, added = extend_tokenizer(json.loads((base / "tokenizer.json").read_text()), [pieces])
    (tmp_path / "extended").mkdir()
    (tmp_path / "extended" / "tokenizer.json").write_text(json.dumps(content))
    new = load_tokenizer(str(tmp_path / "extended"))
    assert new.tokenizer.encode("a dogsails", add_special_tokens=False).tokens[-1] == added[-1]
    directory, _ = run(base, "extend", tmp_path / "extended")
    said = checks(directory, base, [*LINES[:20], "a dogsails ran"])["segmentation"]
    assert said == "of 21 texts 20 segment as with the base, 1 differ within new tokens, 0 elsewhere"


def test_special_tokens_that_only_a_file_beside_names_stay(make_checkpoint, run):
    base = make_checkpoint()
    content = json.loads((base / "tokenizer.json").read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "<mask>"]
    content["post_processor"] = None
    (base / "tokenizer.json").write_text(json.dumps(content))
    names = {"mask_token": "<mask>", "additional_special_tokens": ["<extra>"]}
    (base / "special_tokens_map.json").write_text(json.dumps(names))
    with pytest.raises(InputError, match=r"special token '<extra>' \(special_tokens_map\.json: additional"):
        run(base, "trim")
    (base / "special_tokens_map.json").write_text(json.dumps({"mask_token": {"content": "<mask>"}}))
    assert 4 in checkpoint_tokenizer(base).special_ids
    directory, manifest = run(base, "trim")
    assert 4 in manifest["embedding"]["protected"]
    assert json.loads((directory / "special_tokens_map.json").read_text()) == {"mask_token": {"content": "<mask>"}}
    assert "segmentation" in checks(directory, base)


def test_ids_of_every_file_are_renumbered(make_checkpoint, run):
    base = make_checkpoint()
    loaded = load_tokenizer(str(base))
    late = [loaded.tokens.index("Ġharbours"), loaded.tokens.index("Ġsailors")]
    config = json.loads((base / "config.json").read_text())
    config |= {"decoder_start_token_id": late[0], "forced_eos_token_id": None, "eos_token_id": [2, late[1]]}
    (base / "config.json").write_text(json.dumps(config))
    (base / "generation_config.json").write_text(json.dumps({"mask_token_id": 4, "bos_token_id": late[0]}))
    (base / "added_tokens.json").write_text(json.dumps({"<mask>": 4}))
    described = {"added_tokens_decoder": {"4": {"content": "<mask>", "special": True}}}
    (base / "tokenizer_config.json").write_text(json.dumps(described))
    directory, _ = run(base, "trim", texts=["the cat"])
    tokens = load_tokenizer(str(directory)).tokens
    found = json.loads((directory / "config.json").read_text())
    assert tokens[found["decoder_start_token_id"]] == "Ġharbours"
    assert [tokens[index] for index in found["eos_token_id"]] == ["</s>", "Ġsailors"]
    assert found["forced_eos_token_id"] is None
    generation = json.loads((directory / "generation_config.json").read_text())
    assert tokens[generation["bos_token_id"]] == "Ġharbours"
    assert tokens[generation["mask_token_id"]] == "<mask>"
    assert json.loads((directory / "added_tokens.json").read_text()) == {"<mask>": 4}


def test_a_default_of_the_class_is_written_out(make_checkpoint, run):
    base = make_checkpoint()
    config = json.loads((base / "config.json").read_text())
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        config.pop(name, None)
    (base / "config.json").write_text(json.dumps(config))
    directory, _ = run(base, "trim")
    found = json.loads((directory / "config.json").read_text())
    assert (found["bos_token_id"], found["pad_token_id"], found["eos_token_id"]) == (0, 1, 2)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", {"sep_token_id": 4000}, r"config\.json: sep_token_id is 4000, the vocabulary has the ids 0 to"),
        ("generation_config.json", {"bos_token_id": -1}, r"generation_config\.json: bos_token_id is -1"),
        ("generation_config.json", {"suppress_tokens": [7]}, "suppress_tokens holds ids"),
        ("added_tokens.json", {"<new>": 900}, r"added_tokens\.json has an added token of id 900"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"900": {}}}, "added token of id 900"),
    ],
)
def test_ids_out_of_range_are_refused_with_the_file_and_the_key(make_checkpoint, run, name, content, message):
    base = make_checkpoint()
    old = json.loads((base / name).read_text()) if (base / name).is_file() else {}
    (base / name).write_text(json.dumps({**old, **content}))
    with pytest.raises(InputError, match=message):
        run(base, "trim")


def test_a_tokenizer_whose_special_tokens_were_swapped_fails(make_checkpoint, run):
    base = make_checkpoint()
    directory, _ = run(base, "trim")
    (directory / "special_tokens_map.json").write_text(json.dumps({"mask_token": "<pad>"}))
    report = verify_injection(directory, str(base), reload=False)
    failed = {check.name: check.detail for check in report.checks if not check.passed}
    assert failed["segmentation"] == "special tokens are not those of the base: mask_token_id"


def test_held_out_text_with_dropped_tokens_is_counted_and_no_failure(make_checkpoint, run):
    base = make_checkpoint()
    counted = [line for line in LINES if "harbours" not in line][:5]
    held_out = ["quiet harbours", "the cat sat"]
    directory, _ = run(base, "trim", texts=counted)
    said = checks(directory, base, [*counted, *held_out])["segmentation"]
    assert said.startswith("of 7 texts ")
    assert not said.endswith(", 0 hold dropped tokens")
