from __future__ import annotations

from wals_spark.demo import model
from wals_spark.mlm.data import special_ids
from wals_spark.tokenizer import load_tokenizer

TEXT = "the cat sat on a mat while the dog ran to the old house and a bird sang by the red river"


def test_the_tokenizer_has_robertas_special_ids_and_survives_transformers(tmp_path):
    from transformers import AutoTokenizer

    model.train_tokenizer([TEXT] * 20, str(tmp_path), 300)
    special = special_ids(load_tokenizer(str(tmp_path)))
    assert (special.start, special.end, special.mask) == (0, 2, 4)
    again = AutoTokenizer.from_pretrained(str(tmp_path))
    assert again("the cat")["input_ids"] == [
        0,
        *load_tokenizer(str(tmp_path)).tokenizer.encode("the cat", add_special_tokens=False).ids,
        2,
    ]
    assert again.mask_token_id == 4
