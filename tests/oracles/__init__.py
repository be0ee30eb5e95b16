"""Brute-force oracles in plain NumPy, for tests: what kernels and solvers are compared with."""
