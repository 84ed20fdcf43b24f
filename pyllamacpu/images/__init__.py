"""Pictures: decoding, sources, resizing, the tiles that a vision tower reads. Knows no model and no engine.

Pillow decodes and is imported when a picture is read; the rest is our own and follows Meta's code to the bit.
"""
