"""Who owns which rows, which rows of the other side each rank needs, and how the matrix is held."""
