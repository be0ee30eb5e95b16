"""Compression of a model's own token embedding: low rank by five objectives, with quantisation as the control."""
