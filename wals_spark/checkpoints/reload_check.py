"""Whether a checkpoint loads: through the stock classes, in a new process, with the matrix that is on disk."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wals_spark.checkpoints.checkpoint import EMBEDDING_SUFFIX, FAMILIES, read_config
from wals_spark.checkpoints.raw_tensor import RawTensor, from_values
from wals_spark.checkpoints.verification_report import VerificationReport, first_of
from wals_spark.errors import InputError

_RELOAD_TIMEOUT_S = 600.0
_KINDS = ("missing", "unexpected", "mismatched")
_DTYPES = {"torch.float64": "F64", "torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16"}


def check_reload(
    report: VerificationReport,
    directory: Path,
    tensors: Mapping[str, RawTensor],
    manifest: Mapping[str, Any],
    base: Path | None = None,
    module: str = "wals_spark.checkpoints.reload",
) -> None:
    """Check that the checkpoint loads in a new process, whole and tied, in every class that `module` tries.

    The measure is how the base itself loads: a key that the base lacks or leaves unread too is not lost.

    Parameters
    ----------
    report : VerificationReport
        Results are appended to it, one per class.
    directory : Path
    tensors : dict of str to RawTensor
        As they are on disk, the embedding whole.
    manifest : dict of str to object
        The content of injection.json.
    base : Path, optional
        Directory of the base with its weights; loaded only where something is amiss.
    module : str
        `wals_spark.checkpoints.reload`, or a module with the same output.
    """
    name, bias = manifest["embedding"]["tensor"], manifest["head_bias"]["tensor"]
    try:
        config = read_config(directory, head=False)
    except InputError as error:
        report.add("reload", False, str(error))
        return
    lost = [tensor for tensor in (name, bias) if tensor is not None and tensor not in tensors]
    if lost or not config.get("architectures"):
        why = f"{first_of(lost)} missing" if lost else "config.json has no architectures"
        report.add("reload", False, f"not tried: {why}")
        return
    loaded = reload_in_new_process(directory, module)
    lost_keys = {auto: _lost_keys(found, config, manifest) for auto, found in loaded.items()}
    amiss = any("error" in found or any(lost_keys[auto].values()) for auto, found in loaded.items())
    of_base = reload_in_new_process(base) if amiss and base is not None else {}
    for auto, found in loaded.items():
        problems = _problems_beyond_base(found, lost_keys[auto], of_base.get(auto, {}))
        if "error" not in found:
            problems += _problems_in_memory(auto, found, tensors[name], tensors[bias] if bias else None, config)
        tied = ", tied" if found.get("tied") else ""
        shared = ""
        if not problems and ("error" in found or any(lost_keys[auto].values())):
            shared = "loads as the base does, which lacks the same" if "error" not in found else "the base fails alike"
        right = shared or f"{found.get('class')}, {found.get('dtype')}{tied}, nothing lost"
        report.add(f"reload {auto}", not problems, "; ".join(problems) if problems else right)


def _problems_in_memory(
    auto: str, found: Mapping[str, Any], embedding: RawTensor, bias: RawTensor | None, config: Mapping[str, Any]
) -> list[str]:
    """Whether the matrix, the tie and the head bias in memory are those on disk, in the dtype of the config."""
    problems = []
    if found["embedding"] != _digest_as(embedding, found["dtype"]):
        problems.append("the embedding in memory is not the one on disk")
    encoder_alone = bias is None and config.get("tie_word_embeddings", True) is False
    if found.get("tied") is False and not encoder_alone:
        problems.append("the head is not tied to the embedding")
    if bias is not None and auto == "AutoModelForMaskedLM":
        kind = found.get("head_bias_dtype")
        if kind is None or found.get("head_bias") != _digest_as(bias, kind):
            problems.append("the head bias in memory is not the one on disk")
    return problems


def _digest_as(tensor: RawTensor, dtype: str) -> str:
    """SHA-256 of a tensor's bytes once it is loaded as a dtype of torch."""
    kind = _DTYPES.get(dtype, tensor.dtype)
    stored = tensor if kind == tensor.dtype else from_values(tensor.values(), kind)
    return hashlib.sha256(stored.data.data).hexdigest()


def _problems_beyond_base(
    found: Mapping[str, Any], lost: Mapping[str, list[str]], of_base: Mapping[str, Any]
) -> list[str]:
    """An error, or keys that are lost, where the base does not have the same."""
    if "error" in found:
        return [] if "error" in of_base else [found["error"]]
    left = {kind: [key for key in keys if key not in of_base.get(kind, ())] for kind, keys in lost.items()}
    return [f"{kind} keys: {first_of(keys)}" for kind, keys in left.items() if keys]


def _lost_keys(
    found: Mapping[str, Any], config: Mapping[str, Any], manifest: Mapping[str, Any]
) -> dict[str, list[str]]:
    """Keys lost by a reload, apart from heads that the checkpoint never had.

    A class other than the checkpoint's own may lack (and initialise anew) its head or pooler and may
    leave the checkpoint's heads unread, as its own class may leave those of others; its encoder must be whole.
    """
    if "error" in found:
        return {}
    prefix = FAMILIES[config["model_type"]].prefix
    base_tensors = manifest["base"]["tensors"]
    encoder = {
        name.removeprefix(prefix)
        for name in base_tensors
        if name.startswith(prefix) or name.endswith(EMBEDDING_SUFFIX) or name.startswith("encoder.")
    }
    body = {name for name in encoder if not name.startswith("pooler.")}

    def of_encoder(key: str) -> bool:
        short = key.removeprefix(prefix)
        return short in body or short.startswith(("embeddings.", "encoder.", "transformer."))

    lost = {kind: [key for key in found[kind] if of_encoder(key)] for kind in _KINDS}
    if config["architectures"][0] == found.get("class"):
        lost |= {kind: list(found[kind]) for kind in ("missing", "mismatched")}
    return lost


def reload_in_new_process(
    directory: str | Path, module: str = "wals_spark.checkpoints.reload"
) -> dict[str, dict[str, Any]]:
    """Run `wals_spark.checkpoints.reload`, or a module with the same output, in a new interpreter."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", module, str(directory)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_RELOAD_TIMEOUT_S, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return {"fresh process": {"error": f"did not end within {_RELOAD_TIMEOUT_S:.0f} s"}}
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        return {"fresh process": {"error": f"ended with code {done.returncode}: {last[0]}"}}
    loaded: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return loaded
