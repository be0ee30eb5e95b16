"""Fixtures of the compression tests."""

from inject_models import make_checkpoint, quick_reload, tokenizer_json

__all__ = ["make_checkpoint", "quick_reload", "tokenizer_json"]
