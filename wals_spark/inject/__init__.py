"""Factors into checkpoints, and the proof of what changed."""
