"""Configuration, weights and the graphs of the architectures."""
