"""Load factorised weights into the stock classes of transformers.

::

    from wals_spark.compress import plugin

    plugin.register()
    model = AutoModelForMaskedLM.from_pretrained(DIR, variant="factorised")     # RobertaForMaskedLM, dense, tied

transformers 5 converts checkpoints while it loads them: a list of rules per model type says which stored tensors
make which parameter. `register` adds one: coordinates, basis and mean make the word embedding. It runs no code from
the checkpoint. The weights lie in ``model.factorised.safetensors``, which nobody loads by accident: without
``variant`` transformers finds no weights and says so.

The expansion is that of `wals_spark.compress.lowrank`, to the bit. Saving a model that was loaded so writes a stock
dense checkpoint, because training moves the matrix off the factors.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter

from wals_spark.checkpoints.checkpoint import EMBEDDING_SUFFIX, FAMILIES

STEM = EMBEDDING_SUFFIX.removesuffix("weight")
CHUNK_ROWS = 4096


class Expand(ConversionOps):
    """The matrix mu + A B in float64, which is exact, rounded to float32 and from there to the model's dtype."""

    @torch.no_grad()
    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, Any]:
        """The matrix (V, d) of coordinates (V, r), basis (r, d) and mean (d,)."""
        coordinates, basis, mean = (_single(input_dict[pattern]) for pattern in source_patterns)
        rows = torch.empty(len(coordinates), basis.shape[1], dtype=coordinates.dtype, device=coordinates.device)
        wide, shift = basis.double(), mean.double()
        for start in range(0, len(rows), CHUNK_ROWS):
            exact = coordinates[start : start + CHUNK_ROWS].double() @ wide + shift
            rows[start : start + CHUNK_ROWS] = exact if rows.dtype == torch.float64 else exact.float().to(rows.dtype)
        return {target_patterns[0]: rows}

    @property
    def reverse_op(self) -> ConversionOps:
        """Saving keeps the matrix."""
        return KeepDense()


class KeepDense(ConversionOps):
    """Save the matrix as it is, under its stock name."""

    def convert(self, input_dict: dict[str, Any], full_layer_name: str, **kwargs: Any) -> dict[str, Any]:
        """The matrix; `full_layer_name` is the name of the coordinates, which stand first among the targets."""
        (matrix,) = input_dict.values()
        return {full_layer_name.removesuffix("coordinates") + "weight": _single(matrix)}

    @property
    def reverse_op(self) -> ConversionOps:
        """Loading expands."""
        return Expand()


def _single(tensors: Any) -> Any:
    return tensors[0] if isinstance(tensors, list) else tensors


def register() -> None:
    """Register the expansion of factorised embeddings with transformers, for every family of `FAMILIES`."""
    for model_type in FAMILIES:
        known = conversion_mapping.get_checkpoint_conversion_mapping(model_type) or []
        if any(isinstance(operation, Expand) for rule in known for operation in getattr(rule, "operations", ())):
            continue
        rule = WeightConverter(
            [STEM + part for part in ("coordinates", "basis", "mean")], EMBEDDING_SUFFIX, operations=[Expand()]
        )
        conversion_mapping.register_checkpoint_conversion_mapping(model_type, [*known, rule], overwrite=True)
