"""GGUF files: reading, writing, tensor types."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllamacpu.gguf.reader import GGUFFile, TensorInfo
from pyllamacpu.gguf.strings import StringArray
from pyllamacpu.gguf.types import TensorType, parse_type
from pyllamacpu.gguf.values import ValueType

if TYPE_CHECKING:
    from pyllamacpu.gguf.writer import GGUFWriter

__all__ = ["GGUFFile", "GGUFWriter", "StringArray", "TensorInfo", "TensorType", "ValueType", "parse_type"]


def __getattr__(name: str) -> object:
    """The writer is imported when it is first used: who runs a model needs none."""
    if name != "GGUFWriter":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pyllamacpu.gguf.writer import GGUFWriter

    return GGUFWriter
