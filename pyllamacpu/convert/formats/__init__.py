"""File formats of checkpoints: read by offset, nothing in them trusted."""
