"""Checkpoints of any kind to GGUF: readers, name maps and the streaming conversion."""
