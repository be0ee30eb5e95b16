"""Tiny models and tokenizers, made on the spot."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fresh_process import run_module
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers


@pytest.fixture(autouse=True)
def quick_reload(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Checkpoints are loaded again in a `FreshProcess`; in a new interpreter where the test is marked so."""
    from wals_spark.checkpoints import reload_check

    if request.node.get_closest_marker("new_interpreter") is None:
        stand_in = SimpleNamespace(run=run_module, TimeoutExpired=subprocess.TimeoutExpired)
        monkeypatch.setattr(reload_check, "subprocess", stand_in)


SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
TEXT = (
    "the cat sat on the mat while a dog ran over green hills and rivers flow down to seas where ships sail under "
    "stars that shine on quiet harbours full of boats nets fish gulls ropes sails masts lamps and tired sailors"
)


def train_tokenizer(size: int = 400, text: str = TEXT) -> Tokenizer:
    """A byte-level BPE over sentences of random words of a text."""
    generator = np.random.default_rng(0)
    lines = [" ".join(generator.choice(text.split(), 12)) for _ in range(400)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


LINES = [" ".join(np.random.default_rng(seed).choice(TEXT.split(), 12)) for seed in range(300)]


def unigram() -> Tokenizer:
    """A Unigram tokenizer over generated text."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=120,
        special_tokens=special,
        unk_token="<unk>",
        show_progress=False,
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyz"),
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


def wordpiece() -> Tokenizer:
    """A WordPiece tokenizer over generated text."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=120,
        special_tokens=special,
        show_progress=False,
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyz"),
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


KINDS = {"BPE": train_tokenizer, "Unigram": unigram, "WordPiece": wordpiece}


WORDPIECE_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def wordpiece_json(
    vocabulary: Sequence[str], special: Sequence[str] = WORDPIECE_SPECIAL, prefix: str = "##"
) -> dict[str, Any]:
    """The content of the tokenizer.json of a WordPiece tokenizer, special tokens first."""
    tokens = [*special, *(token for token in vocabulary if token not in special)]
    return {
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": prefix,
            "max_input_chars_per_word": 100,
            "vocab": {token: index for index, token in enumerate(tokens)},
        },
        "added_tokens": [
            {"content": token, "id": index, "special": True, "normalized": False}
            | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
            for index, token in enumerate(special)
        ],
        "pre_tokenizer": {"type": "BertPreTokenizer"},
    }


@pytest.fixture(scope="session")
def tokenizer_json() -> str:
    """A small byte-level BPE as JSON."""
    return train_tokenizer().to_str()


@pytest.fixture
def make_checkpoint(tmp_path: Path, tokenizer_json: str) -> Callable[..., Path]:
    """Save a tiny model of a class of transformers with the tokenizer; keyword arguments go to its config."""

    def make(
        name: str = "model",
        class_name: str = "RobertaForMaskedLM",
        edit: Callable[[Any], None] | None = None,
        dtype: str | None = None,
        **values: Any,
    ) -> Path:
        import torch
        import transformers

        size = Tokenizer.from_str(tokenizer_json).get_vocab_size()
        model_class = getattr(transformers, class_name)
        settings = {
            "vocab_size": size,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "max_position_embeddings": 40,
            "type_vocab_size": 1,
            "pad_token_id": 1,
            "bos_token_id": 0,
            "eos_token_id": 2,
        }
        if class_name.startswith("DistilBert"):
            settings = {"vocab_size": size, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 24, "pad_token_id": 1}
        config = model_class.config_class(**{**settings, **values})
        torch.manual_seed(0)
        model = model_class(config)
        if edit is not None:
            with torch.no_grad():
                edit(model)
        if dtype is not None:
            model = model.to(getattr(torch, dtype))
        directory = tmp_path / name
        model.save_pretrained(directory)
        (directory / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
        return directory

    return make


@pytest.fixture
def make_factors(tokenizer_json: str) -> Callable[..., Any]:
    """Factors of which a share of the embedding is a linear image, so that alignment has something to find."""

    def make(embedding: np.ndarray, k: int = 8, noise: float = 0.1, seed: int = 0) -> Any:
        from wals_spark.checkpoints.edit import TokenFactors

        generator = np.random.default_rng(seed)
        size = len(embedding)
        counts = np.sort(generator.zipf(1.3, size).clip(0, 100_000))[::-1].astype(np.int64) + 5
        counts[:5] = 0
        counts[-1] = 0
        directions = generator.standard_normal((embedding.shape[1], k))
        matrix = embedding @ directions + noise * embedding.std() * generator.standard_normal((size, k))
        return TokenFactors(matrix.astype(np.float32), counts)

    return make


@pytest.fixture
def inject(tmp_path: Path, make_config: Callable[..., Any], make_factors: Callable[..., Any]) -> Callable[..., Any]:
    """Inject factors that fit the checkpoint, without Spark; returns the directory and injection.json."""

    def run(checkpoint: Path, mode: str = "blend", *, factors: Any = None, name: str = "out", **values: Any) -> Any:
        from wals_spark.checkpoints import atomic_directory
        from wals_spark.checkpoints.checkpoint import embedding_values, open_checkpoint
        from wals_spark.checkpoints.pack_making import write_packed_artifact
        from wals_spark.factors.store import Vectors
        from wals_spark.inject.prepare import prepare_edit
        from wals_spark.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(str(checkpoint))
        if factors is None:
            if mode == "init":
                E = np.random.default_rng(5).standard_normal((len(tokenizer.tokens), 16)).astype(np.float32)
            else:
                E = embedding_values(open_checkpoint(str(checkpoint)))[: len(tokenizer.tokens)]
            factors = make_factors(E)
        settings = {
            "vocabulary__tokenizer": str(checkpoint),
            "inject__anchor_min_count": 1,
            "inject__strengths": "fitted",
            **values,
        }
        config = make_config(inject__mode=mode, inject__checkpoint=str(checkpoint), **settings)
        bias = np.zeros(len(tokenizer.tokens), np.float32)
        vectors = Vectors(list(tokenizer.tokens), factors.counts, factors.matrix, bias)
        base, change, used = prepare_edit(config, vectors)
        described = {
            "mode": mode,
            "parameters": {"seed": config.seed, **config.inject.result_keys()},
            "factors": {"run_id": "test", "vocabulary_hash": tokenizer.hash, "k": 8, "combine": "u"},
        }
        directory = tmp_path / name
        with atomic_directory.staged_directory(str(directory), replace=False) as staging:
            manifest = write_packed_artifact(staging, base, change, used, described, config.inject.pack_dtype)
        return directory, manifest

    return run


def alignment_problem(
    n: int = 600, k: int = 6, d: int = 9, noise: float = 0.3, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Factors U, rows E that are a linear image of them with noise, and counts."""
    generator = np.random.default_rng(seed)
    U = generator.standard_normal((n, k)).astype(np.float32) + 2
    E = (U @ generator.standard_normal((k, d)) + noise * generator.standard_normal((n, d)) - 1).astype(np.float32)
    counts = generator.integers(1, 10_000, n)
    return U, E, counts


SIZE, K, UNIT = 40, 5, 10
"""Of `worlds`."""


def matrix(seed: int) -> np.ndarray:
    """A symmetric matrix of counts."""
    generator = np.random.default_rng(seed)
    upper = np.triu(generator.poisson(1.5, (SIZE, SIZE)) * generator.integers(1, 9, (SIZE, SIZE)))
    return upper + np.triu(upper, 1).T


def save(path: Path, x: np.ndarray, blocks: int = 3) -> list[str]:
    """As the co-occurrence stage writes it: sorted by row, rows interleaved over blocks."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = []
    for block in range(blocks):
        row, col = np.nonzero(x)
        mine = row % blocks == block
        columns = {"row_id": row[mine], "col_id": col[mine], "units": x[row[mine], col[mine]]}
        types = {"row_id": pa.int32(), "col_id": pa.int32(), "units": pa.int64()}
        files.append(f"{path}-{block}.parquet")
        pq.write_table(pa.table({name: pa.array(values, types[name]) for name, values in columns.items()}), files[-1])
    return files


def marginals(x: np.ndarray) -> Any:
    """Marginals of a matrix of counts."""
    from wals_spark.objective import Marginals

    return Marginals(x.sum(1) / UNIT, x.sum(0) / UNIT, (x > 0).sum(1), (x > 0).sum(0))


@pytest.fixture
def worlds(tmp_path: Path) -> Any:
    """General counts and the sum with a domain, as arrays and as files, and column factors."""
    from wals_spark.inject.domain_shift import BatchCounts

    general, domain = matrix(0), matrix(1)
    total = general + domain
    files = save(tmp_path / "general", general), save(tmp_path / "domain", domain)
    V = np.random.default_rng(2).standard_normal((SIZE, K)).astype(np.float32)
    return (
        general,
        total,
        BatchCounts(tuple(files[0] + files[1]), marginals(total)),
        BatchCounts(tuple(files[0]), marginals(general)),
        V,
    )


def random_documents(seed: int, documents: int = 60, longest: int = 90) -> list[list[int]]:
    """Documents of 20 and more ordinary token ids of `train_tokenizer`."""
    generator = np.random.default_rng(seed)
    return [generator.integers(5, 300, generator.integers(20, longest)).tolist() for _ in range(documents)]
