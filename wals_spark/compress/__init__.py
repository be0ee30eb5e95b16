"""Compression of a model's own token embedding: low rank by six methods, with quantisation as the control."""
