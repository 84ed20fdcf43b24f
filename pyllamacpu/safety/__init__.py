"""Guards: models and rules that judge what people and models say."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyllamacpu.safety.code_shield.issues import CodeShieldScanResult, Treatment
    from pyllamacpu.safety.code_shield.scan import CodeShield
    from pyllamacpu.safety.guard import Guard, Verdict

_PLACES = {
    "Guard": "guard",
    "Verdict": "guard",
    "CodeShield": "code_shield.scan",
    "CodeShieldScanResult": "code_shield.issues",
    "Treatment": "code_shield.issues",
}

__all__ = ["CodeShield", "CodeShieldScanResult", "Guard", "Treatment", "Verdict"]


def __getattr__(name: str) -> object:
    """Imported when first used, since the engine comes along with some."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"pyllamacpu.safety.{_PLACES[name]}"), name)
