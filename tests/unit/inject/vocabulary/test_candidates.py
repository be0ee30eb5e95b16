"""From words to an extended tokenizer, for every kind of tokenizer."""

from __future__ import annotations

import json

import pytest
from inject_models import KINDS, LINES, train_tokenizer, wordpiece
from tokenizers import Tokenizer

from wals_spark.cli import main
from wals_spark.errors import InputError
from wals_spark.inject.vocabulary import candidates
from wals_spark.inject.vocabulary.extend import extend_tokenizer
from wals_spark.tokenizer import LoadedTokenizer, load_tokenizer


@pytest.fixture(params=list(KINDS))
def kind(request):
    return request.param


@pytest.fixture
def loaded(kind, tmp_path) -> LoadedTokenizer:
    KINDS[kind]().save(str(tmp_path / "tokenizer.json"))
    return load_tokenizer(str(tmp_path))


def test_added_words_become_one_token_and_other_text_stays(kind, loaded):
    counts = {"dogsails": 50, "catrivers": 40, "mat": 1000}
    found = candidates.split_words(counts, loaded)
    assert {word.text for word in found} >= {"dogsails", "catrivers"}
    content = json.loads(loaded.tokenizer.to_str())
    chosen = [word for word in found if word.text != "mat"]
    extended, added = extend_tokenizer(content, [[loaded.tokens[i] for i in word.pieces] for word in chosen])
    after = Tokenizer.from_str(json.dumps(extended))
    assert after.get_vocab_size() == len(loaded.tokens) + len(added)
    assert all(after.token_to_id(token) == index for index, token in enumerate(loaded.tokens))
    for text in ("dogsails", "catrivers"):
        ids = after.encode(f"the {text}", add_special_tokens=False).ids
        assert ids[-1] >= len(loaded.tokens)
        assert len(ids) == len(after.encode("the", add_special_tokens=False).ids) + 1
        assert after.decode(ids).strip() == f"the {text}"
    for line in LINES:
        assert after.encode(line).tokens == loaded.tokenizer.encode(line).tokens


def test_words_that_save_most_tokens_come_first(loaded):
    counts = {"dogsails": 30, "catrivers": 31, "greenlamps": 29, "mat": 10_000, "rareword": 4}
    found = candidates.split_words({**counts, "mat": 5}, loaded, min_count=20)
    assert [word.saved for word in found] == sorted((word.saved for word in found), reverse=True)
    assert {word.text for word in found} == {"dogsails", "catrivers", "greenlamps"}
    for word in found:
        assert word.saved == counts[word.text] * (len(word.pieces) - 1)


def test_spellings_that_the_tokenizer_makes_equal_are_counted_together(tmp_path):
    wordpiece().save(str(tmp_path / "tokenizer.json"))
    (found,) = candidates.split_words({"Dogsails": 3, "dogsails": 5}, load_tokenizer(str(tmp_path)))
    assert found.count == 8


def test_pieces_that_end_inside_a_character_are_no_candidates(tmp_path):
    train_tokenizer(400).save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(str(tmp_path))
    assert len(loaded.tokenizer.encode(" été", add_special_tokens=False).ids) > 2
    assert candidates.split_words({"été": 100}, loaded) == []


def test_a_list_keeps_its_order_and_says_what_it_leaves_out(tmp_path):
    train_tokenizer(400).save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(str(tmp_path))
    path = tmp_path / "list.txt"
    path.write_text("# terms\ncatrivers\n\ndogsails\ncatrivers\n")
    able, left = candidates.split_word_list([*candidates.read_word_list(str(path)), "the"], loaded)
    assert [word.text for word in able] == ["catrivers", "dogsails"]
    assert [word.count for word in able] == [0, 0]
    assert left == ["the"]


@pytest.mark.parametrize(("content", "match"), [("", "no word"), ("two words\n", "'two words'")])
def test_a_bad_list_is_refused(tmp_path, content, match):
    path = tmp_path / "list.txt"
    path.write_text(content)
    with pytest.raises(InputError, match=match):
        candidates.read_word_list(str(path))


def test_text_files_are_counted_by_letters(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("Cats, cats; don't x2 été_été\n", encoding="utf-8")
    assert candidates.count_words_of_files([str(path)]) == {"Cats": 1, "cats": 1, "don": 1, "t": 1, "x": 1, "été": 2}


def test_the_command_writes_a_tokenizer_that_transformers_loads(tmp_path, make_checkpoint):
    from transformers import AutoTokenizer

    base, text, output = make_checkpoint(), tmp_path / "text.txt", tmp_path / "extended"
    text.write_text("a dogsails and catrivers " * 30)
    arguments = ["--checkpoint", str(base), "--output", str(output), "--text", str(text), "--words", "1"]
    assert main(["extend-tokenizer", *arguments]) == 0
    (row,) = (output / "words.tsv").read_text().splitlines()[1:]
    word, count, pieces, saved = row.split("\t")
    assert (count, int(saved)) == ("30", 30 * (len(pieces.split()) - 1))
    found = AutoTokenizer.from_pretrained(str(output))
    assert found.tokenize(f"a {word}")[-1] == f"Ġ{word}"
    assert main(["extend-tokenizer", *arguments]) == 2  # the output exists


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "nothing.txt"], "cannot read nothing.txt"),
        (["--word-list", "nothing.txt"], "there is no file nothing.txt"),
    ],
)
def test_the_command_says_what_is_wrong(tmp_path, make_checkpoint, caplog, arguments, message):
    base = make_checkpoint()
    assert main(["extend-tokenizer", "--checkpoint", str(base), "--output", str(tmp_path / "x"), *arguments]) == 2
    assert message in caplog.text


def test_words_that_are_tokens_already_are_said_to_be(tmp_path, make_checkpoint, caplog):
    base, path = make_checkpoint(), tmp_path / "list.txt"
    path.write_text("cat\n")
    command = ["extend-tokenizer", "--checkpoint", str(base), "--output", str(tmp_path / "x"), "--word-list", str(path)]
    assert main(command) == 2
    assert "one token already" in caplog.text
