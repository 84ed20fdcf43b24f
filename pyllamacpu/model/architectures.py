"""The names of architectures: which can be run, and by which module (registry.py says what that defines)."""

from __future__ import annotations

MODULES = {"llama": "pyllamacpu.model.llama"}
"""By the name in general.architecture."""

CONFIG_ONLY = ("llama4",)
"""Those whose config can be read, and that cannot be run yet."""


def known() -> tuple[str, ...]:
    """All architectures whose config can be read."""
    return (*MODULES, *CONFIG_ONLY)
