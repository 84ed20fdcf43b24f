"""The names of architectures: which can be run, and by which module (registry.py says what that defines)."""

from __future__ import annotations

MODULES = {
    "llama": "pyllamacpu.model.llama",
    "llama4": "pyllamacpu.model.llama4",
    "mllama": "pyllamacpu.model.mllama",
}
"""By the name in general.architecture."""


def known() -> tuple[str, ...]:
    """All architectures whose config can be read."""
    return tuple(MODULES)
