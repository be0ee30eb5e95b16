"""Spark: session, preflight, barrier stages, process groups."""
