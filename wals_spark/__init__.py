"""Distributed WALS word vectors on Spark, and their injection into RoBERTa checkpoints."""

__version__ = "0.1.0"
