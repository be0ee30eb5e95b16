"""How many tokens the position embeddings of a model allow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PADDED_ROWS = ("roberta", "xlm-roberta", "camembert")
"""Model types whose position embeddings begin behind the padding id."""


def longest_sequence(config: Mapping[str, Any]) -> int | None:
    """Tokens that the position embeddings of a model allow, by its config.json; None where that names no limit."""
    positions = config.get("max_position_embeddings")
    if positions is not None and config.get("model_type") in PADDED_ROWS:
        return int(positions) - int(config.get("pad_token_id") or 0) - 1
    return None if positions is None else int(positions)
