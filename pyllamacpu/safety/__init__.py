"""Guards: models and rules that judge what people and models say."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyllamacpu.safety.guard import Guard, Verdict

__all__ = ["Guard", "Verdict"]


def __getattr__(name: str) -> object:
    """Imported when first used, since the engine comes along."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pyllamacpu.safety import guard

    return getattr(guard, name)
