"""Half-steps on a CPU, compiled by numba: one module per method, on top of products and Cholesky in packed panels."""
