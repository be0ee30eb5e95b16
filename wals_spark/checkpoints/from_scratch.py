"""A masked-LM model as its class initialises it from a seed: the base of an edit where nothing was trained yet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wals_spark.checkpoints.json_file import read_json_object
from wals_spark.checkpoints.raw_tensor import RawTensor, from_torch
from wals_spark.errors import InputError


def initialise_model(directory: Path, seed: int) -> tuple[dict[str, RawTensor], dict[str, Any]]:
    """The tensors of a masked-LM model as its class initialises them from the seed, and its config.json.

    Parameters
    ----------
    directory : Path
        Where config.json is; weights beside it are not read.
    seed : int
        Of torch's generator.

    Returns
    -------
    tensors : dict of str to RawTensor
        Tied copies left out.
    config : dict of str to object
        With ``architectures`` set.

    Raises
    ------
    InputError
        transformers cannot make a masked-LM model from config.json.
    """
    import torch
    from transformers import AutoConfig, AutoModelForMaskedLM

    try:
        config = AutoConfig.from_pretrained(str(directory))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForMaskedLM.from_config(config, dtype=torch.float32)
    except Exception as error:  # classes raise nearly every kind on values that do not fit
        raise InputError(
            f"{directory / 'config.json'} describes no model that transformers can make ({type(error).__name__}: "
            f"{error!s:.200})"
        ) from error
    model.tie_weights()
    tied = set(model._tied_weights_keys or {}) if config.tie_word_embeddings else set()
    state = {name: value for name, value in model.state_dict().items() if name not in tied}
    described = {**_config_without_dtype(directory), **config.to_diff_dict(), "architectures": [type(model).__name__]}
    described["dtype"] = "float32"
    return from_torch(state), described


def _config_without_dtype(directory: Path) -> Mapping[str, Any]:
    loaded = read_json_object(directory / "config.json")
    return {name: value for name, value in loaded.items() if name != "torch_dtype"}
