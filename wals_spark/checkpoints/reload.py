"""Load a checkpoint through the stock classes and report missing keys, ties and hashes; run in a process of its own.

``python -m wals_spark.checkpoints.reload DIRECTORY`` writes one JSON object to standard output. A new process
has no patched class, no cached model and no weights in memory, so a checkpoint that loads here loads for anyone.
"""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any

CLASSES = (
    "AutoModelForMaskedLM",
    "AutoModel",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
)


def _digest(tensor: Any) -> str:
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(flat).hexdigest()


def load_with_class(directory: str, name: str, variant: str | None = None) -> dict[str, Any]:
    """Load a checkpoint through one class of transformers.

    Parameters
    ----------
    directory : str
        Of the checkpoint.
    name : str
        Of the class.
    variant : str, optional
        Of the weights' file, as transformers has it: ``model.<variant>.safetensors``.

    Returns
    -------
    dict of str to object
        ``class``, ``missing``, ``unexpected``, ``mismatched`` keys, ``dtype``, ``embedding`` (SHA-256 of the
        matrix in memory), ``padding_idx``, and for a masked-LM class ``tied`` (by identity) and
        ``head_bias`` (SHA-256); or ``error``.
    """
    import transformers

    try:
        model, info = getattr(transformers, name).from_pretrained(
            directory,
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            dtype="auto",
            variant=variant,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    inputs = model.get_input_embeddings()
    found: dict[str, Any] = {
        "class": type(model).__name__,
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"]),
        "mismatched": sorted(key[0] if isinstance(key, tuple) else str(key) for key in info["mismatched_keys"]),
        "dtype": str(inputs.weight.dtype),
        "embedding": _digest(inputs.weight),
        "padding_idx": inputs.padding_idx,
    }
    outputs = model.get_output_embeddings()
    if outputs is not None:
        found["tied"] = outputs.weight is inputs.weight
        found["head_bias"] = None if outputs.bias is None else _digest(outputs.bias)
        found["head_bias_dtype"] = None if outputs.bias is None else str(outputs.bias.dtype)
    return found


def print_reload_report(arguments: list[str], variant: str | None = None) -> int:
    """Load through every class of `CLASSES` and print a JSON object of the results by class."""
    import transformers

    transformers.logging.set_verbosity_error()
    directory = arguments[0]
    report = {name: load_with_class(directory, name, variant) for name in CLASSES}
    json.dump(report, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(print_reload_report(sys.argv[1:]))
