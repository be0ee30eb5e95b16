"""Fixtures of the injection tests."""

from inject_models import inject, make_checkpoint, make_factors, quick_reload, tokenizer_json, worlds

__all__ = ["inject", "make_checkpoint", "make_factors", "quick_reload", "tokenizer_json", "worlds"]
