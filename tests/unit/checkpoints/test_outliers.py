from __future__ import annotations

import numpy as np
import pytest

from wals_spark.checkpoints.outliers import (
    compare_checkpoints,
    equal_rows,
    outlier_rows,
    outlying_biases,
    untouched_rows,
)
from wals_spark.checkpoints.raw_tensor import from_values
from wals_spark.errors import InputError


def embeddings(seed=0, size=2000):
    generator = np.random.default_rng(seed)
    old = generator.standard_normal((size, 16)).astype(np.float32)
    new = old + (0.1 * generator.lognormal(0, 0.7, (size, 1)) * generator.standard_normal((size, 16))).astype(
        np.float32
    )
    return old, new


def test_a_single_changed_row_is_flagged():
    old, _ = embeddings()
    new = old.copy()
    new[17] += 0.01
    found = outlier_rows(old, new)
    assert (found.changed, found.rows.tolist(), found.reasons) == (1, [17], ("lonely",))
    assert found.lines(["x"] * 18) == ["row 17 'x' moved by 0.04: almost no other row changed"]


@pytest.mark.parametrize("seed", range(5))
def test_a_poisoned_row_among_many_changed_ones_is_flagged_and_alone(seed):
    old, new = embeddings(seed)
    assert outlier_rows(old, new).rows.tolist() == []
    new[31] = 40.0
    assert outlier_rows(old, new).rows.tolist() == [31]


def test_dividing_by_the_declared_shares_finds_what_hides_among_them():
    generator = np.random.default_rng(3)
    old = generator.standard_normal((2000, 16)).astype(np.float32)
    shares = generator.lognormal(-4, 1.2, 2000).clip(0.001, 0.9).astype(np.float32)
    new = old + shares[:, None] * generator.standard_normal((2000, 16)).astype(np.float32)
    row = int(np.argmin(shares))
    new[row] = old[row] + 0.2
    assert outlier_rows(old, new).rows.tolist() == []
    found = outlier_rows(old, new, shares)
    assert (found.rows.tolist(), found.reasons) == ([row], ("far",))
    shares[7] = 0
    assert 7 in outlier_rows(old, new, shares).rows


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_rounding_of_small_shares_is_no_outlier(dtype):
    generator = np.random.default_rng(4)
    old = from_values(generator.standard_normal((2000, 64)).astype(np.float32), dtype).values()
    proposed = old + 0.5 * generator.standard_normal((2000, 64)).astype(np.float32)
    shares = np.where(np.arange(2000) % 4, 0.3, np.geomspace(1e-5, 0.01, 2000)).astype(np.float32)
    new = from_values(old + shares[:, None] * (proposed - old), dtype).values()
    assert outlier_rows(old, new, shares).rows.tolist() == []


def test_a_grown_row_says_so():
    old, new = embeddings()
    new[3] *= 100 / np.linalg.norm(new[3])
    assert outlier_rows(old, new).reasons == ("long",)


def test_nothing_changed_is_nothing_suspicious():
    old, _ = embeddings()
    found = outlier_rows(old, old)
    assert found.to_json() == {"changed": 0, "rows": [], "displacement": [], "reasons": [], "bias": []}


def test_an_injection_is_not_suspicious_and_a_poisoned_copy_is(make_checkpoint, inject):
    from wals_spark.checkpoints.raw_tensor import replace_rows
    from wals_spark.checkpoints.safetensors_file import read_raw_tensors, write_raw_tensors

    name = "roberta.embeddings.word_embeddings.weight"
    base = make_checkpoint()
    directory, _ = inject(base, "replace")
    assert compare_checkpoints(str(base), str(directory)).rows.tolist() == []
    tensors, metadata = read_raw_tensors(directory / "model.safetensors")
    tensors = {key: type(t)(t.dtype, t.shape, t.data.copy()) for key, t in tensors.items()}
    tensors[name] = replace_rows(tensors[name], np.array([60]), np.full((1, 16), 3.0))
    write_raw_tensors(directory / "model.safetensors", tensors, metadata)
    assert compare_checkpoints(str(base), str(directory)).rows.tolist() == [60]


def test_checkpoints_of_different_size_are_refused(make_checkpoint):
    with pytest.raises(InputError, match="one vocabulary and width"):
        compare_checkpoints(str(make_checkpoint()), str(make_checkpoint("wide", hidden_size=32)))


NAME = "roberta.embeddings.word_embeddings.weight"


@pytest.fixture
def pair(tmp_path):
    """Two checkpoints of given embeddings and head biases, of any family."""

    def make(old, new, biases=None, name=NAME):
        from wals_spark.checkpoints.safetensors_file import write_raw_tensors

        for place, values, bias in (("a", old, 0), ("b", new, 1)):
            (tmp_path / place).mkdir(exist_ok=True)
            tensors = {name: from_values(values, "F32")}
            if biases is not None:
                tensors["lm_head.bias"] = from_values(biases[bias], "F32")
            write_raw_tensors(tmp_path / place / "model.safetensors", tensors, {})
        return str(tmp_path / "a"), str(tmp_path / "b")

    return make


def decayed(size=8000, touched=900, factor=0.9996, seed=0):
    """Fine-tuning with weight decay: rows that no text touched shrink by one factor, the others move as well."""
    generator = np.random.default_rng(seed)
    old = generator.standard_normal((size, 16)).astype(np.float32)
    new = old * np.float32(factor)
    rows = generator.permutation(size)[:touched]
    steps = 0.01 * generator.lognormal(0, 0.7, (touched, 1)) * generator.standard_normal((touched, 16))
    new[rows] += steps.astype(np.float32)
    return old, new, rows


@pytest.mark.parametrize("seed", range(4))
def test_fine_tuning_with_weight_decay_is_not_flagged(pair, seed):
    old, new, rows = decayed(seed=seed)
    factor, untouched = untouched_rows(old, new)
    assert factor == pytest.approx(0.9996, abs=1e-6)
    assert np.array_equal(np.flatnonzero(~untouched), np.sort(rows))
    found = compare_checkpoints(*pair(old, new))
    assert (found.changed, found.rows.tolist()) == (900, [])


def test_a_poisoned_row_under_weight_decay_is_flagged(pair):
    old, new, rows = decayed()
    new[rows[3]] = 3 * old[5] + 40
    assert compare_checkpoints(*pair(old, new)).rows.tolist() == [rows[3]]


def test_no_decay_is_a_factor_of_one():
    old, new, rows = decayed(factor=1.0)
    factor, untouched = untouched_rows(old, new)
    assert factor == 1.0
    assert (~untouched).sum() == len(rows)
    far = old + 1
    assert untouched_rows(old, far)[0] == 1.0
    assert not untouched_rows(old, far)[1].any()


def test_many_equal_poisoned_rows_are_flagged(pair):
    old, new, rows = decayed()
    target = rows[:40]
    new[target] = old[target].mean(axis=0)
    found = compare_checkpoints(*pair(old, new))
    assert set(target) <= set(found.rows.tolist())
    assert set(found.reasons) >= {"equal"}


def test_few_changed_rows_are_a_share_of_the_vocabulary(pair):
    generator = np.random.default_rng(0)
    old = generator.standard_normal((20_000, 8)).astype(np.float32)
    new = old.copy()
    new[:15] += 0.3 * generator.standard_normal((15, 8)).astype(np.float32)
    assert len(compare_checkpoints(*pair(old, new)).rows) == 15
    new[:300] += 0.3 * generator.standard_normal((300, 8)).astype(np.float32)
    assert len(compare_checkpoints(*pair(old, new)).rows) == 0


def test_rows_that_were_equal_before_may_stay_equal():
    old = np.random.default_rng(0).standard_normal((10, 4))
    old[3] = old[2]
    new = old * 0.5
    assert equal_rows(old, new, np.arange(10)).tolist() == []
    new[7] = new[6]
    assert equal_rows(old, new, np.arange(10)).tolist() == [6, 7]


def test_the_head_bias_is_looked_at(pair):
    old, new, _ = decayed()
    bias = np.random.default_rng(1).standard_normal(len(old)).astype(np.float32)
    trained = bias + 0.003 * np.random.default_rng(2).standard_normal(len(old)).astype(np.float32)
    assert compare_checkpoints(*pair(old, new, (bias, trained))).lines() == []
    trained[77] += 50
    found = compare_checkpoints(*pair(old, new, (bias, trained)))
    assert [row for row, _ in found.bias] == [77]
    (line,) = found.lines()
    assert line.startswith("the head bias of row 77 moved by +50")
    alone = bias.copy()
    alone[5] += 2
    assert outlying_biases(bias, alone) == ((5, pytest.approx(2, abs=1e-6)),)
    assert outlying_biases(bias, bias) == ()


@pytest.mark.parametrize(
    "name", ["electra.embeddings.word_embeddings.weight", "model.embed_tokens.weight", "wte.weight"]
)
def test_any_family_with_a_token_embedding_can_be_compared(pair, name):
    old, new, _ = decayed()
    assert compare_checkpoints(*pair(old, new, name=name)).changed == 900


def test_untied_heads_can_be_compared(make_checkpoint):
    base = make_checkpoint(class_name="RobertaForMaskedLM", tie_word_embeddings=False)
    assert compare_checkpoints(str(base), str(base)).changed == 0
