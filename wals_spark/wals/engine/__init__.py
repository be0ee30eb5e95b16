"""A training on its ranks: driver, rank program, factors, collectives, checkpoints, memory."""
