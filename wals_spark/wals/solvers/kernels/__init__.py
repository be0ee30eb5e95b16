"""The half-step on a CPU, compiled by numba: exact, in the dual form, by blocks, by conjugate gradients."""
