"""The model card of a compressed checkpoint: the method, the rank, and what other choices would have cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wals_spark.checkpoints.model_card import render_template

VARIANT = "factorised"
"""As transformers has it: the weights of format ``plugin`` lie in model.<variant>.safetensors."""


def render_compression_card(manifest: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Markdown with the metadata header of the hub, from injection.json (without hashes) and config.json."""
    source = str(manifest["base"]["source"])
    parameters = manifest["parameters"]
    masked = config["architectures"][0].endswith("MaskedLM")
    return render_template(
        "wals_spark.compress",
        title=f"{Path(source).name or source} (rank {parameters['rank']})",
        base_model=source.partition("@")[0] if manifest["base"]["hub"] else None,
        architecture=config["architectures"][0],
        auto_class="AutoModelForMaskedLM" if masked else "AutoModel",
        parameters=parameters,
        embedding=manifest["embedding"],
        variant=VARIANT,
        rows=manifest["fit"]["table"],
    )
