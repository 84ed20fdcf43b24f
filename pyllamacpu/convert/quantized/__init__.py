"""Quantized checkpoints, as plain weights."""
