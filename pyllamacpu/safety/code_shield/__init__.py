"""Code Shield: whether code that a model wrote is insecure, by rules."""
