"""The names of architectures: which can be run, and by which module (registry.py says what that defines)."""

from __future__ import annotations

DEBERTA = "deberta-v2"  # the only encoder
MODULES = {
    "llama": "pyllamacpu.model.llama",
    "llama4": "pyllamacpu.model.llama4",
    "mllama": "pyllamacpu.model.mllama",
    DEBERTA: "pyllamacpu.model.deberta",
}
"""By the name in general.architecture."""


def known() -> tuple[str, ...]:
    """All architectures whose config can be read."""
    return tuple(MODULES)
