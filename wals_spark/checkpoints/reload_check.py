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
from wals_spark.checkpoints.raw_tensor import RawTensor
from wals_spark.checkpoints.verification_report import VerificationReport, first_of
from wals_spark.errors import InputError

_RELOAD_TIMEOUT_S = 600.0


def check_reload(
    report: VerificationReport,
    directory: Path,
    tensors: Mapping[str, RawTensor],
    manifest: Mapping[str, Any],
    module: str = "wals_spark.checkpoints.reload",
) -> None:
    """Check that the checkpoint loads in a new process, whole and tied, in every class that `module` tries.

    Parameters
    ----------
    report : VerificationReport
        Results are appended to it, one per class.
    directory : Path
    tensors : dict of str to RawTensor
        As they are on disk, the embedding whole.
    manifest : dict of str to object
        The content of injection.json.
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
    matrix = hashlib.sha256(tensors[name].data.data).hexdigest()
    family = FAMILIES[config["model_type"]]
    native = config["architectures"][0]
    for auto, found in loaded.items():
        problems = list(_reload_problems(found, native == found.get("class"), family.prefix, manifest))
        if "error" not in found:
            if found["embedding"] != matrix:
                problems.append("the embedding in memory is not the one on disk")
            encoder_alone = bias is None and config.get("tie_word_embeddings", True) is False
            if found.get("tied") is False and not encoder_alone:
                problems.append("the head is not tied to the embedding")
            if bias is not None and auto == "AutoModelForMaskedLM":
                expected = hashlib.sha256(tensors[bias].data.data).hexdigest()
                if found.get("head_bias") != expected:
                    problems.append("the head bias in memory is not the one on disk")
        tied = ", tied" if found.get("tied") else ""
        report.add(
            f"reload {auto}",
            not problems,
            "; ".join(problems) if problems else f"{found['class']}, {found['dtype']}{tied}, nothing lost",
        )


def _reload_problems(found: Mapping[str, Any], native: bool, prefix: str, manifest: Mapping[str, Any]) -> list[str]:
    """Keys lost by a reload, apart from heads that the checkpoint never had.

    A class other than the checkpoint's own may lack (and initialise anew) its head or pooler and may
    leave the checkpoint's head unread; its encoder must be whole.
    """
    if "error" in found:
        return [found["error"]]
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

    missing = [key for key in found["missing"] if of_encoder(key)]
    unexpected = [key for key in found["unexpected"] if of_encoder(key)]
    if native:
        missing = found["missing"]
        unexpected = [key for key in found["unexpected"] if not key.removeprefix(prefix).startswith("pooler.")]
    problems = []
    if missing:
        problems.append(f"missing keys: {first_of(list(missing))}")
    if unexpected:
        problems.append(f"unexpected keys: {first_of(list(unexpected))}")
    if found["mismatched"]:
        problems.append(f"mismatched keys: {first_of(list(found['mismatched']))}")
    return problems


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
