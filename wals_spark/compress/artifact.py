"""A compressed checkpoint on disk, in one of three formats, each with the proof beside it.

=============  ====================================================================================================
dense          model.safetensors with the whole matrix: the stock class, loaded by anyone; no smaller on disk
factorised     model.safetensors with coordinates, basis and mean, and the classes that compute with them in
               modeling_factorised.py: loads with ``trust_remote_code=True``
plugin         model.factorised.safetensors with the same tensors: `wals_spark.compress.plugin` expands them into the
               stock classes while they load
=============  ====================================================================================================

All three give the same matrix to the bit. injection.json, factors.safetensors and README.md are as in
`wals_spark.checkpoints.artifact`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from wals_spark.checkpoints import artifact
from wals_spark.checkpoints.checkpoint import WEIGHTS, Checkpoint
from wals_spark.checkpoints.edit import BaseCheckpoint, EmbeddingEdit, base_of_checkpoint
from wals_spark.checkpoints.raw_tensor import RawTensor
from wals_spark.compress.lowrank import LowRankEmbedding, from_tensors
from wals_spark.compress.model_card import VARIANT, render_compression_card
from wals_spark.errors import InputError

FORMATS = ("dense", "factorised", "plugin")
MODE = "compress"
PARTS = ("coordinates", "basis", "mean")
CODE = "modeling_factorised.py"
HEADS = ("", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")


def write_compressed(
    directory: Path,
    opened: Checkpoint,
    factors: LowRankEmbedding,
    format_: str,
    parameters: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Write a compressed checkpoint into an empty directory.

    Parameters
    ----------
    directory : Path
    opened : Checkpoint
        The checkpoint before.
    factors : LowRankEmbedding
    format_ : str
        One of `FORMATS`.
    parameters : dict of str to object
        The request, for injection.json.
    facts : dict of str to object
        The figures of the fit, for injection.json.

    Returns
    -------
    dict of str to object
        The content of injection.json.

    Raises
    ------
    InputError
        The class of the checkpoint has no counterpart in the format ``factorised``.
    """
    dense = factors.expand()
    V = dense.shape[0]
    parts = factors.tensors()
    stem = opened.embedding.removesuffix("weight")
    stored = None
    base = base_of_compression(opened, format_, factors.rank)
    if format_ != "dense":
        file = WEIGHTS if format_ == "factorised" else WEIGHTS.replace("model", f"model.{VARIANT}")
        stored = artifact.EmbeddingParts(file, {stem + name: tensor for name, tensor in parts.items()})
    edit = EmbeddingEdit(
        ids=np.arange(V),
        rows=dense.values(),
        head_bias=None,
        share=np.ones(V, np.float32),
        map={} if stored else {name: tensor.values() for name, tensor in parts.items()},
        facts=dict(facts),
    )
    described = {"mode": MODE, "parameters": {**parameters, "format": format_}, "factors": None}
    return artifact.write_artifact(
        directory, base, edit, None, described, stored=stored, render=render_compression_card
    )


def base_of_compression(opened: Checkpoint, format_: str, rank: int) -> BaseCheckpoint:
    """The checkpoint with the configuration and code that a format has beside the weights; no row is protected."""
    base = base_of_checkpoint(opened, opened.source, np.zeros(0, np.int64))
    if format_ != "factorised":
        return base
    config = factorised_config(opened, rank)
    source = modeling_code(opened.family.classes, opened.config["model_type"])
    texts = {"config.json": json.dumps(config, indent=2, sort_keys=True) + "\n", CODE: source}
    kept = tuple(path for path in base.files if path.name not in texts)
    return replace(base, config=config, files=kept, texts=texts)


def factorised_config(opened: Checkpoint, rank: int) -> dict[str, Any]:
    """config.json of the format ``factorised``: a model type of its own, and every head's class.

    Under the family's own model type a user without the code would get the stock class and random rows.
    """
    stem = opened.family.classes
    head = opened.architecture.removeprefix(stem)
    head = "" if head == "Model" else head
    if not opened.architecture.startswith(stem) or head not in HEADS:
        raise InputError(
            f"--format factorised: {opened.architecture} has no factorised class (there is one for "
            f"{', '.join(stem + (name or 'Model') for name in HEADS)}); use --format dense or plugin"
        )
    module = CODE.removesuffix(".py")
    heads = {f"AutoModel{name}": f"{module}.Factorised{name or 'Model'}" for name in HEADS}
    return {
        **opened.config,
        "model_type": f"factorised-{opened.config['model_type']}",
        "architectures": [f"Factorised{head or 'Model'}"],
        "auto_map": {"AutoConfig": f"{module}.FactorisedConfig", **heads},
        "factor_rank": rank,
    }


def modeling_code(classes: str, model_type: str) -> str:
    """modeling_factorised.py for a family, given the stem of its classes and its model type; written, never run."""
    text = resources.files("wals_spark.compress").joinpath(CODE).read_text(encoding="utf-8")
    return text.replace('FAMILY = "Roberta"', f'FAMILY = "{classes}"', 1).replace(
        'MODEL_TYPE = "factorised-roberta"', f'MODEL_TYPE = "factorised-{model_type}"', 1
    )


def split_factors(tensors: Mapping[str, RawTensor], embedding: str) -> tuple[dict[str, RawTensor], LowRankEmbedding]:
    """Split the tensors of a file into those that are no factors, and the factors.

    Raises
    ------
    InputError
        A factor is missing.
    """
    names = [embedding.removesuffix("weight") + part for part in PARTS]
    missing = [name for name in names if name not in tensors]
    if missing:
        raise InputError(f"the file lacks {', '.join(missing)}: it does not hold a factorised embedding")
    others = {name: tensor for name, tensor in tensors.items() if name not in names}
    return others, from_tensors(*(tensors[name] for name in names))
