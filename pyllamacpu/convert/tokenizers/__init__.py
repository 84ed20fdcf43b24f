"""Tokenizer files of checkpoints, as tokenizer.* metadata."""
