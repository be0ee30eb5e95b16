"""The half-step on a GPU: by our own kernels, or by batches of torch."""
