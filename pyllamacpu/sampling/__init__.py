"""Choosing tokens: options, the sampler, stop strings."""
