"""Hugging Face checkpoints as files: read, edit, write, prove, reload."""
