"""Partition of the matrix over ranks: owners of rows, redistribution of cells, blocks and their halos, memory plan."""
