"""Masked language modelling: fixed masks, loss, short training runs."""
