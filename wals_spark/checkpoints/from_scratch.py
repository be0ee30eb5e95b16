r"""A model about to be pretrained: its embedding from the factors, everything else as initialised.

Row i is ``s (u_i - mu) R`` with R the first k rows of a random orthogonal matrix drawn from the seed and s
such that the rows' root mean square entry is the config's ``initializer_range``: no axis of the model means
anything yet, and LayerNorms expect vectors without preferred axes. Tokens that the corpus lacks, special
ones and padding keep their initial rows. The head bias is the log unigram frequency.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wals_spark.checkpoints.raw_tensor import RawTensor, from_torch
from wals_spark.errors import InputError


def random_orthogonal(d: int, seed: int) -> np.ndarray:
    """A d x d orthogonal matrix, uniform (Haar), float64."""
    generator = np.random.default_rng([seed, 14])
    Q, R = np.linalg.qr(generator.standard_normal((d, d)))
    return Q * np.sign(np.diag(R))


def initial_rows(U: np.ndarray, counts: np.ndarray, d: int, scale: float, seed: int) -> np.ndarray:
    """Rows of a fresh embedding from factors.

    Parameters
    ----------
    U : float32 (n, k)
        In the canonical gauge: where k > d the first d columns are the strongest and only they are used.
    counts : (n,)
        Weights of the mean: a frequent token counts log(1 + c).
    d : width of the embedding
    scale : root mean square entry, the config's initializer_range
    seed : of the rotation

    Returns
    -------
    float32 (n, d)
    """
    X = U[:, :d].astype(np.float64)
    weight = np.log1p(counts.astype(np.float64))
    X -= (weight @ X) / weight.sum()  # (n, min(k, d))
    rows = X @ random_orthogonal(d, seed)[: X.shape[1]]  # (n, d)
    size = float(np.sqrt(np.mean(rows**2)))
    if size == 0:
        raise InputError("all factors are equal: there is nothing to initialise from")
    return (rows * (scale / size)).astype(np.float32)


def initialise_model(directory: Path, seed: int) -> tuple[dict[str, RawTensor], dict[str, Any]]:
    """The tensors of a masked-LM model as its class initialises them from the seed, and its config.json.

    Parameters
    ----------
    directory : where config.json is; weights beside it are not read
    seed : of torch's generator

    Returns
    -------
    tensors : dict of name -> RawTensor, tied copies left out
    config : dict, with ``architectures`` set
    """
    import torch
    from transformers import AutoConfig, AutoModelForMaskedLM

    config = AutoConfig.from_pretrained(str(directory))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForMaskedLM.from_config(config, dtype=torch.float32)
    model.tie_weights()
    tied = set(model._tied_weights_keys or {}) if config.tie_word_embeddings else set()
    state = {name: value for name, value in model.state_dict().items() if name not in tied}
    described = {**_plain(directory), **config.to_diff_dict(), "architectures": [type(model).__name__]}
    described["dtype"] = "float32"
    return from_torch(state), described


def _plain(directory: Path) -> Mapping[str, Any]:
    loaded = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return {name: value for name, value in loaded.items() if name != "torch_dtype"}
