"""The solvers of a half-step: one linear system per row, on CPUs or a GPU."""
