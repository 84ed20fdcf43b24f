"""Tensors on their way between files: lazy sources, encoding in slabs, whole outputs."""
