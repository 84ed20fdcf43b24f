"""Scanners of the firewall: each judges one message by one means. They have LlamaFirewall's names too."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyllamacpu.safety.scanners.base import Scanner
    from pyllamacpu.safety.scanners.checks import CustomCheckScanner
    from pyllamacpu.safety.scanners.code import CodeShieldScanner
    from pyllamacpu.safety.scanners.models import AlignmentScanner, PromptGuardScanner
    from pyllamacpu.safety.scanners.models import AlignmentScanner as AlignmentCheckScanner
    from pyllamacpu.safety.scanners.patterns import HiddenASCIIScanner, PIIScanner, RegexScanner
    from pyllamacpu.safety.scanners.patterns import PIIScanner as PIICheckScanner

__all__ = [
    "AlignmentCheckScanner",
    "AlignmentScanner",
    "CodeShieldScanner",
    "CustomCheckScanner",
    "HiddenASCIIScanner",
    "PIICheckScanner",
    "PIIScanner",
    "PromptGuardScanner",
    "RegexScanner",
    "Scanner",
]

_PLACES = {
    "AlignmentCheckScanner": ("models", "AlignmentScanner"),
    "AlignmentScanner": ("models", "AlignmentScanner"),
    "CustomCheckScanner": ("checks", "CustomCheckScanner"),
    "CodeShieldScanner": ("code", "CodeShieldScanner"),
    "HiddenASCIIScanner": ("patterns", "HiddenASCIIScanner"),
    "PIICheckScanner": ("patterns", "PIIScanner"),
    "PIIScanner": ("patterns", "PIIScanner"),
    "PromptGuardScanner": ("models", "PromptGuardScanner"),
    "RegexScanner": ("patterns", "RegexScanner"),
    "Scanner": ("base", "Scanner"),
}


def __getattr__(name: str) -> object:
    """Imported when first used, as `pyllamacpu.safety` does it."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    place, own = _PLACES[name]
    return getattr(import_module(f"{__name__}.{place}"), own)
