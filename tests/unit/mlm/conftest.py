"""Fixtures of the masked-LM tests."""

from inject_models import make_checkpoint, tokenizer_json

__all__ = ["make_checkpoint", "tokenizer_json"]
