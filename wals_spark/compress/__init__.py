"""Compression of a model's own token embedding: low rank by four objectives, with quantisation as the control."""
