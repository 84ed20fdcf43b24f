"""GGUF files: reading, writing, tensor types."""

from pyllamacpu.gguf.reader import GGUFFile, TensorInfo
from pyllamacpu.gguf.strings import StringArray
from pyllamacpu.gguf.types import TensorType, parse_type
from pyllamacpu.gguf.values import ValueType
from pyllamacpu.gguf.writer import GGUFWriter

__all__ = ["GGUFFile", "GGUFWriter", "StringArray", "TensorInfo", "TensorType", "ValueType", "parse_type"]
