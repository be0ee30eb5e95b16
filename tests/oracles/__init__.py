"""Brute-force twins in plain NumPy, for tests: what kernels and solvers are compared with."""
