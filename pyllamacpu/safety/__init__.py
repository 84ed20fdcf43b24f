"""Guards: models and rules that judge what people and models say."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyllamacpu.safety.code_shield.issues import CodeShieldScanResult, Treatment
    from pyllamacpu.safety.code_shield.scan import CodeShield
    from pyllamacpu.safety.firewall import Firewall, LlamaFirewall, register_llamafirewall_scanner
    from pyllamacpu.safety.firewall_types import (
        AssistantMessage,
        MemoryMessage,
        Message,
        Role,
        ScanDecision,
        ScannerType,
        ScanResult,
        ScanStatus,
        SystemMessage,
        ToolMessage,
        Trace,
        UseCase,
        UserMessage,
    )
    from pyllamacpu.safety.guard import Guard, Verdict
    from pyllamacpu.safety.prompt_guard import PromptGuard, PromptVerdict
    from pyllamacpu.safety.scanners.base import Scanner, register_scanner
    from pyllamacpu.safety.scanners.checks import LLMClient

_PLACES = {
    "Guard": "guard",
    "Verdict": "guard",
    "CodeShield": "code_shield.scan",
    "CodeShieldScanResult": "code_shield.issues",
    "Treatment": "code_shield.issues",
    "PromptGuard": "prompt_guard",
    "PromptVerdict": "prompt_guard",
    "Scanner": "scanners.base",
    "register_scanner": "scanners.base",
    "LLMClient": "scanners.checks",
    "Firewall": "firewall",
    "LlamaFirewall": "firewall",
    "register_llamafirewall_scanner": "firewall",
    "AssistantMessage": "firewall_types",
    "MemoryMessage": "firewall_types",
    "Message": "firewall_types",
    "Role": "firewall_types",
    "ScanDecision": "firewall_types",
    "ScanResult": "firewall_types",
    "ScanStatus": "firewall_types",
    "ScannerType": "firewall_types",
    "SystemMessage": "firewall_types",
    "ToolMessage": "firewall_types",
    "Trace": "firewall_types",
    "UseCase": "firewall_types",
    "UserMessage": "firewall_types",
}

__all__ = [
    "AssistantMessage",
    "CodeShield",
    "CodeShieldScanResult",
    "Firewall",
    "Guard",
    "LLMClient",
    "LlamaFirewall",
    "MemoryMessage",
    "Message",
    "PromptGuard",
    "PromptVerdict",
    "Role",
    "ScanDecision",
    "ScanResult",
    "ScanStatus",
    "Scanner",
    "ScannerType",
    "SystemMessage",
    "ToolMessage",
    "Trace",
    "Treatment",
    "UseCase",
    "UserMessage",
    "Verdict",
    "register_llamafirewall_scanner",
    "register_scanner",
]


def __getattr__(name: str) -> object:
    """Imported when first used, since the engine comes along with some."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"pyllamacpu.safety.{_PLACES[name]}"), name)
