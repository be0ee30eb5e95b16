from __future__ import annotations

from pathlib import Path

import pytest

import wals_spark
from wals_spark.config import (
    PATHS,
    Config,
    CorpusConfig,
    InjectConfig,
    TrainConfig,
    fingerprint,
    known_keys,
    load_config,
    reference_markdown,
)
from wals_spark.errors import ConfigError
from wals_spark.objective import configuration_keys


def test_unknown_key_names_the_nearest_known_one(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("cooccurrence: {window_lft: 3}\n")
    with pytest.raises(ConfigError, match=r"cooccurrence\.window_lft; did you mean cooccurrence\.window_left\?"):
        load_config(path)


def test_unknown_section_names_the_nearest_known_one():
    with pytest.raises(ConfigError, match=r"trian; did you mean train\?"):
        load_config(None, ["trian.k=3"])


def test_a_key_that_is_given_twice_is_refused(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("train:\n  k: 3\n  sweeps: 2\n  k: 4\n")
    with pytest.raises(ConfigError, match=r"k: given twice(.|\n)*line 2"):
        load_config(path)


def test_yaml_may_merge_a_mapping_into_another(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("train: &base {k: 3, sweeps: 2}\nneighbours: {count: 5}\n")
    assert load_config(path).train.k == 3
    path.write_text("run_id: a\ntrain:\n  <<: {k: 3, sweeps: 2}\n  k: 4\n")
    assert (load_config(path).train.k, load_config(path).train.sweeps) == (4, 2)


@pytest.mark.parametrize(
    "key", ["corpus.path", "evaluate.similarity", "evaluate.analogies", "inject.general_batches", "train.cells"]
)
def test_one_text_is_a_list_of_one(key):
    section, name = key.split(".")
    config = load_config(None, (), {"inject.mode": "blend", key: "given"})
    assert getattr(getattr(config, section), name) == ("given",)


def test_set_overrides_yaml_and_flags_override_set(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("run_id: a\ntrain: {k: 3, sweeps: 2}\n")
    config = load_config(path, ["train.k=64", "run_id=b"], {"run_id": "c"})
    assert (config.train.k, config.train.sweeps, config.run_id) == (64, 2, "c")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.k=0", r"train\.k"),
        ("train.k=1025", r"train\.k"),
        ("cooccurrence.window_left=256", "window_left"),
        ("run_id=../up", "directory name"),
        ("corpus.batch_id=a/b", "directory name"),
        ("vocabulary.pattern=[", "not a regular expression"),
        ("train", "expected section.key=value"),
    ],
)
def test_bad_value_is_refused_with_its_key(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, [override])


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("vocabulary.pattern=[a-z]+", "vocabulary.pattern", "[a-z]+"),
        ("vocabulary.pattern=a # b", "vocabulary.pattern", "a # b"),
        ("corpus.batch_id=20241101", "corpus.batch_id", "20241101"),
        ("corpus.batch_id=2024-11-01", "corpus.batch_id", "2024-11-01"),
        ("corpus.batch_id=0123", "corpus.batch_id", "0123"),
        ("run_id=1e5", "run_id", "1e5"),
        ("run_id=no", "run_id", "no"),
        ("corpus.text_column=true", "corpus.text_column", "true"),
        ("corpus.text_column=a: b", "corpus.text_column", "a: b"),
        ("corpus.text_column='a b'", "corpus.text_column", "a b"),
        ("corpus.id_column=none", "corpus.id_column", None),
        ("corpus.id_column=", "corpus.id_column", None),
        ("corpus.delimiter=;", "corpus.delimiter", ";"),
        ("corpus.delimiter=\t", "corpus.delimiter", "\t"),
        ("corpus.quote=", "corpus.quote", None),
        ("corpus.escape=\\", "corpus.escape", "\\"),
        ("corpus.path=*.txt", "corpus.path", ("*.txt",)),
        ("corpus.path=[ab]*.txt", "corpus.path", ("[ab]*.txt",)),
        ("corpus.path=a #1.txt", "corpus.path", ("a #1.txt",)),
        ("corpus.path=[a.txt, 7, no]", "corpus.path", ("a.txt", "7", "no")),
        ("corpus.path=['a, b.txt']", "corpus.path", ("a, b.txt",)),
        ("corpus.path=", "corpus.path", ()),
        ("train.batches=20241101,b", "train.batches", ("20241101", "b")),
        ("neighbours.tokens=no", "neighbours.tokens", ("no",)),
        ("cooccurrence.distance_weighting=none", "cooccurrence.distance_weighting", "none"),
        ("cooccurrence.subsample=none", "cooccurrence.subsample", None),
        ("cooccurrence.subsample=1e-5", "cooccurrence.subsample", 1e-5),
        ("corpus.normalize=no", "corpus.normalize", False),
        ("train.k=64", "train.k", 64),
        ("spark.conf.spark.executor.memory=2g", "spark.conf", {"spark.executor.memory": "2g"}),
        ("spark.conf.spark.x=010", "spark.conf", {"spark.x": "010"}),
        ("evaluate.checkpoints.v1.5=/a b", "evaluate.checkpoints", {"v1.5": "/a b"}),
    ],
)
def test_set_takes_a_value_by_the_type_of_its_key(override, key, expected):
    found = load_config(None, [override])
    for name in key.split("."):
        found = getattr(found, name)
    assert found == expected


def test_the_home_directory_in_any_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    overrides = ["corpus.path=[~/a, b]", "inject.checkpoint=~", "evaluate.checkpoints.x=~/c", "corpus.text_column=~"]
    config = load_config(None, overrides, {"warehouse": "~/w", "vocabulary.tokenizer": "~/t.json"})
    home = str(tmp_path)
    assert (config.warehouse, config.corpus.path) == (f"{home}/w", (f"{home}/a", "b"))
    assert (config.inject.checkpoint, config.vocabulary.tokenizer) == (None, f"{home}/t.json")
    assert (config.evaluate.checkpoints, config.corpus.text_column) == ({"x": f"{home}/c"}, "~")


def test_every_key_of_a_path_is_known():
    assert set(PATHS) <= set(known_keys())


def test_window_of_zero_on_both_sides_is_refused():
    with pytest.raises(ConfigError, match="at least one must be 1"):
        load_config(None, ["cooccurrence.window_left=0", "cooccurrence.window_right=0"])


def test_resolved_configuration_reads_back_to_the_same(tmp_path):
    config = load_config(None, ["corpus.path=/a/b", "train.k=7", "train.batches=x,y"])
    path = tmp_path / "resolved.yaml"
    path.write_text(config.to_yaml())
    assert load_config(path) == config
    assert config.train.batches == ("x", "y")


def test_fingerprint_ignores_where_it_runs_and_sees_what_it_computes():
    base = Config()
    assert base.fingerprint == load_config(None, ["warehouse=/x", "run_id=r"]).fingerprint
    assert base.fingerprint != load_config(None, ["train.k=7"]).fingerprint


def test_execution_keys_do_not_determine_the_result():
    base, other = Config(), load_config(None, ["train.workers=3", "train.timeout_s=9"])
    assert base.train.result_keys() == other.train.result_keys()
    assert base.train.result_keys() != load_config(None, ["train.k=3"]).train.result_keys()


def test_the_sections_of_a_default_configuration_have_the_fingerprint_that_warehouses_hold():
    """`states` and `fit` came later, as did some keys: everything else is as it was."""
    left_out = ("warehouse", "run_id", "spark", "states", "fit")
    kept = {k: v for k, v in Config().dump().items() if k not in left_out}
    for name, section in (("corpus", CorpusConfig), ("inject", InjectConfig)):
        kept[name] = {k: v for k, v in kept[name].items() if k not in section.later_keys}
    assert fingerprint(kept) == "2bbefb97754cd10b"


@pytest.mark.parametrize(
    "override", ["corpus.encoding=latin-1", "corpus.delimiter=;", "corpus.quote=", "corpus.escape=x"]
)
def test_a_key_of_a_later_version_counts_where_it_is_no_default(override):
    changed = load_config(None, [override])
    assert changed.fingerprint != Config().fingerprint
    assert changed.corpus.result_keys() != Config().corpus.result_keys()


def test_no_domain_pack_is_no_key_of_the_result():
    assert "pack" not in Config().inject.result_keys()
    assert load_config(None, ["inject.pack=int8"]).inject.result_keys()["pack"] == "int8"


def test_the_reference_of_all_keys_is_current():
    page = (Path(wals_spark.__file__).parents[1] / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page.endswith(reference_markdown()), "run make docs"


def test_the_section_train_has_every_key_that_an_objective_declares():
    fields = TrainConfig.model_fields
    assert set(configuration_keys()) <= set(fields)
    for name, key in configuration_keys().items():
        assert fields[name].default is None
        assert fields[name].description == key.description


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.objective=als", r"train\.objective: Input should be 'ppmi', .* or 'custom' \(found 'als'\)"),
        ("train.bias=x", r"train\.bias: Input should be 'none', 'free' or 'fixed' \(found 'x'\)"),
        ("train.rho=-1", r"train\.rho: Input should be greater than or equal to 0 \(found -1\)"),
        ("train.shift=0", r"train\.shift: Input should be greater than 0 \(found 0\)"),
        ("train.context_smoothing=2", r"train\.context_smoothing: Input should be less than or equal to 1 \(found 2\)"),
    ],
)
def test_a_bad_value_of_an_objective_key_is_refused_with_its_bounds(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, [override])
