"""The demonstration: the whole pipeline on this machine, on text that every installation carries."""

from wals_spark.demo.run import run_demo

__all__ = ["run_demo"]
