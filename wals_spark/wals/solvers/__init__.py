"""The half-step: linear systems of rows, and who solves them."""
