"""How exactly quantized weights are multiplied, and what keys and values are kept in with that."""

from __future__ import annotations

from typing import Any

from pyllamacpu.errors import OptionError

PRECISIONS = ("fast", "exact")


def kv_types_of(precision: str, type_k: str | None = None, type_v: str | None = None) -> tuple[str, str]:
    """Of keys and values, where None is the type that goes with the precision. f16 keeps 11 bits, fewer than
    `exact` has of activations: with it answers part from float32's at gaps of logits up to 5e-3
    (`benchmarks/precision.py`).
    """
    usual = "f32" if precision == "exact" else "f16"
    return type_k or usual, type_v or usual


def check_precision(precision: Any) -> None:
    """Raises OptionError for one that is not known."""
    if precision not in PRECISIONS:
        raise OptionError(f"precision is {precision!r:.80}: must be {' or '.join(PRECISIONS)}")
