from __future__ import annotations

import numpy as np
import pytest

from wals_spark import token_shards
from wals_spark.checkpoints.checkpoint import embedding_values, open_checkpoint
from wals_spark.errors import GateError, InputError
from wals_spark.factors.store import Vectors
from wals_spark.inject import frequency
from wals_spark.inject.loss_search import sample_text
from wals_spark.inject.prepare import EncodedText, prepare_edit
from wals_spark.inject.proposal import TokenFrequencies
from wals_spark.mlm.data import special_ids
from wals_spark.tokenizer import load_tokenizer

SIZE = 400


def shards(directory, documents=60, length=50, seed=0, low=5):
    """Encoded documents whose tokens follow Zipf's law, in two shards."""
    generator = np.random.default_rng(seed)
    weights = 1 / (np.arange(SIZE - low) + 2.0)
    listed = []
    for number in range(2):
        writer = token_shards.ShardWriter(str(directory / f"part-{number:05}.arrow"))
        tokens = generator.choice(np.arange(low, SIZE), documents * length, p=weights / weights.sum()).astype(np.int32)
        names = [f"{number}-{index}" for index in range(documents)]
        writer.write(names, tokens, np.arange(documents + 1, dtype=np.int64) * length)
        listed.append(writer.close())
    token_shards.write_listing(str(directory), listed)
    return str(directory)


def counts_of(directory):
    total = np.zeros(SIZE, np.int64)
    for shard in token_shards.list_shards(directory):
        for chunk in token_shards.read_shards([shard.path]):
            total += np.bincount(chunk.tokens[chunk.tokens >= 0], minlength=SIZE)
    return total


def test_tokens_of_batches_are_counted_exactly(tmp_path):
    a, b = shards(tmp_path / "a"), shards(tmp_path / "b", seed=1)
    found = frequency.count_encoded_tokens([a, b], SIZE)
    assert np.array_equal(found, counts_of(a) + counts_of(b))
    assert found.sum() == 2 * 2 * 60 * 50


def test_a_sample_comes_from_all_shards_and_counts_its_own_tokens(tmp_path, make_checkpoint):
    directory = shards(tmp_path / "a")
    special = special_ids(load_tokenizer(str(make_checkpoint())))
    found = sample_text([directory], special, sequences=20, length=32, seed=1)
    again = sample_text([directory], special, sequences=20, length=32, seed=1)
    assert np.array_equal(found.masked.inputs, again.masked.inputs)
    assert found.masked.inputs.shape == (20, 32)
    assert (found.counts <= counts_of(directory)).all()
    assert 400 < found.counts.sum() <= 20 * 30


def test_too_little_text_is_an_input_error(tmp_path, make_checkpoint):
    directory = shards(tmp_path / "a", documents=2)
    special = special_ids(load_tokenizer(str(make_checkpoint())))
    with pytest.raises(InputError, match=r"inject\.strengths to fitted"):
        sample_text([directory], special, sequences=20, length=32, seed=1)


def test_two_frequencies_and_what_the_head_bias_moves_to():
    frequencies = TokenFrequencies(np.array([10.0, 0.0]), np.array([1.0, 5.0]))
    assert frequencies.towards("domain") is frequencies
    assert frequencies.towards("sum").corpus.tolist() == [11.0, 5.0]
    assert frequencies.without(np.array([3, 2])).corpus.tolist() == [0.0, 3.0]


@pytest.fixture
def prepared(tmp_path, make_checkpoint, make_factors, make_config):
    """`prepare_edit` on a tiny model, a general and a domain batch."""

    def run(**values):
        base = make_checkpoint()
        general = shards(tmp_path / "general", seed=3, low=30)
        domain = shards(tmp_path / "domain", seed=4)
        tokenizer = load_tokenizer(str(base))
        factors = make_factors(embedding_values(open_checkpoint(str(base))))
        counts = counts_of(general) + counts_of(domain)
        vectors = Vectors(list(tokenizer.tokens), counts, factors.matrix, np.zeros(SIZE, np.float32))
        settings = {"inject__mode": "blend", "inject__anchor_min_count": 1, "inject__text_sequences": 40, **values}
        config = make_config(inject__checkpoint=str(base), inject__general_batches=["general"], **settings)
        delta = np.random.default_rng(5).standard_normal(factors.matrix.shape).astype(np.float32)
        text = EncodedText((general,), (domain,), delta if config.inject.shift != 0 else None)
        return prepare_edit(config, vectors, text), counts_of(general), counts_of(domain)

    return run


@pytest.mark.parametrize("target", ["auto", "sum", "domain"])
def test_a_head_bias_that_helps_is_chosen_on_text(prepared, target):
    (base, change, _), general, domain = prepared(
        inject__head_bias="auto", inject__head_bias_target=target, inject__gate=False
    )
    chosen = change.facts["strengths"]["head_bias"]
    choice = change.facts["strengths"]["head_bias_choice"]
    assert chosen > 0
    assert choice["gain"]["low"] > 0
    goal = domain if target == "domain" else general + domain
    assert change.facts["strengths"]["head_bias_target"] == ("domain" if target == "domain" else "sum")
    expected = chosen * (frequency.log_unigram(goal) - frequency.log_unigram(general))
    old = base.tensors["lm_head.bias"].values()
    np.testing.assert_allclose((change.head_bias - old)[5:], expected[5:], atol=1e-5)
    assert set(choice["losses"]) == {"0", "0.25", "0.5", "0.75", "1"}


def test_rows_that_do_not_help_are_left_alone_and_the_gate_says_so(prepared):
    with pytest.raises(GateError, match="no strength gains anything clear") as refused:
        prepared()
    assert refused.value.details["strengths"]["rows_choice"]["best"] == 0.0


def test_force_writes_nothing_helpful_but_says_so(prepared):
    (_, change, _), _, _ = prepared(inject__force=True)
    assert len(change.ids) == 0
    assert change.facts["strengths"]["half_exposure"] == 0.0


def test_the_domain_is_what_is_left_of_the_counts(prepared):
    (_, change, _), _, domain = prepared(inject__strengths="fitted", inject__gate=False)
    assert not change.share[domain == 0].any()


def test_the_gain_of_a_shift_is_counted_from_the_replacement_and_does_not_include_it(prepared):
    """Replacing rows costs much here; a shift that is measured from the rows as they were would look as bad."""
    (_, change, _), _, _ = prepared(inject__mode="replace", inject__shift="auto", inject__gate=False)
    strengths = change.facts["strengths"]
    losses = strengths["shift_choice"]["losses"]
    assert losses["0"] != pytest.approx(strengths["base_loss"], abs=1e-6)
    (_, again, _), _, _ = prepared(inject__mode="replace", inject__shift=0.1, inject__gate=False)
    assert len(again.ids) == len(change.ids)
    best = strengths["shift_choice"]["best"]
    assert strengths["shift_choice"]["gain"]["value"] == pytest.approx(losses["0"] - losses[f"{best:g}"], abs=1e-9)
