"""Masked language modelling without Spark: fixed data, loss, rare-token accuracy, short pretraining."""
