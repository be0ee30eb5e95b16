"""Fixtures of all tests: one Spark session, throw-away warehouses, the real data where it is."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
os.environ.setdefault("PYSPARK_DRIVER_PYTHON", sys.executable)
os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parent.parent
SPARK_CONF = {
    "spark.master": "local[2]",
    "spark.ui.enabled": "false",
    "spark.sql.shuffle.partitions": "2",
    "spark.default.parallelism": "2",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.memory": "1g",
    "spark.barrier.sync.timeout": "120",
}


@pytest.fixture(scope="session")
def spark() -> Iterator[Any]:
    """A local session with two slots and Delta's classes where they can be had, shared by all tests."""
    from wals_spark.cluster.session import open_session
    from wals_spark.config import Config, SparkConfig
    from wals_spark.errors import ConfigError

    settings = SparkConfig(conf=SPARK_CONF, delta_jars=os.environ.get("WALS_SPARK_DELTA_JARS"))
    try:
        session = open_session(Config(spark=settings, table_format="delta"), "wals_spark tests")
    except ConfigError:
        session = open_session(Config(spark=settings), "wals_spark tests")
    yield session
    session.stop()


@pytest.fixture(scope="session")
def data() -> Path:
    """The directory of the real corpora and evaluation sets; tests that need it skip where it is absent."""
    path = Path(os.environ.get("WALS_SPARK_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"real data not found: {path} is absent and WALS_SPARK_DATA is not set")
    return path


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., Any]:
    """A configuration with its warehouse in a temporary directory; keyword arguments are dotted keys with __."""
    from wals_spark.config import load_config

    def make(**values: Any) -> Any:
        flags = {"warehouse": str(tmp_path / "warehouse")}
        return load_config(None, (), {**flags, **{key.replace("__", "."): value for key, value in values.items()}})

    return make


@pytest.fixture
def make_context(make_config: Callable[..., Any], spark: Any) -> Callable[..., Any]:
    """A stage context over a temporary warehouse and the shared session."""
    from wals_spark.cluster.session import has_delta
    from wals_spark.stage import Context

    def make(**values: Any) -> Any:
        if values.get("table_format") == "delta" and not has_delta(spark):
            pytest.skip("Delta's jars cannot be had: no Maven repository, and WALS_SPARK_DELTA_JARS is not set")
        return Context(make_config(**values), lambda: spark)

    return make


TINY_TEXT = "the cat sat on a mat while dog ran to old house and bird sang by red river"


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A word-level tokenizer with RoBERTa's special tokens and 18 words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    from wals_spark.tokenizer import load_tokenizer

    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    vocabulary = {token: index for index, token in enumerate([*specials, *TINY_TEXT.split()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(specials)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return load_tokenizer(str(path))


@pytest.fixture(scope="session")
def special(tiny_tokenizer: Any) -> Any:
    """Its special ids."""
    from wals_spark.mlm.data import special_ids

    return special_ids(tiny_tokenizer)


@pytest.fixture
def tiny_model() -> Any:
    """A one-layer masked-LM model for `tiny_tokenizer`."""
    import torch
    from transformers import RobertaConfig, RobertaForMaskedLM

    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=5 + len(TINY_TEXT.split()),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        type_vocab_size=1,
    )
    return RobertaForMaskedLM(config).eval()
