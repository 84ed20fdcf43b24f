"""Quantizing models: recipes of types, importance matrices, measured sizes."""
