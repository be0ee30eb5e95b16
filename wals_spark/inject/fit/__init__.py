"""Rows and head bias fitted to an encoder's own hidden states."""
