"""Factors after training: reading, combining, exporting, comparing."""
