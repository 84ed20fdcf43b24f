"""The types a whole file can be quantized to: llama-quantize's names, numbers and aliases.

Source: tools/quantize/quantize.cpp and `llama_ftype` in include/llama.h of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pyllamacpu.errors import OptionError
from pyllamacpu.gguf.keys import KeyValue
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.gguf.values import ValueType

T = TensorType
FILE_TYPE_KEY, VERSION_KEY = "general.file_type", "general.quantization_version"
_GUESSED = 1024  # added to a number that the file does not say but its tensors suggest


@dataclass(frozen=True)
class FileType:
    """A mix of tensor types.

    name: as asked for, which names the output file. mix: the same without aliases (`Q4_K_M` for `Q4_K`).
    number: `general.file_type`. base: the type of what no rule of the mix says anything about.
    """

    name: str
    mix: str
    number: int
    base: TensorType
    about: str

    @property
    def copies(self) -> bool:
        """True when tensors keep the types that they have."""
        return self.mix == "COPY"


def file_type_keys(number: int) -> list[KeyValue]:
    """What says that a file's tensors are of file type `number`."""
    version = 2  # of the block formats
    return [
        KeyValue(FILE_TYPE_KEY, number, ValueType.UINT32),
        KeyValue(VERSION_KEY, version, ValueType.UINT32),
    ]


def _file_types() -> dict[str, FileType]:
    rows: list[tuple[str, int, TensorType, str]] = [
        ("Q4_0", 2, T.Q4_0, "4.5 bits"),
        ("Q4_1", 3, T.Q4_1, "5 bits"),
        ("MXFP4_MOE", 38, T.MXFP4, "experts in MXFP4, the rest in Q8_0"),
        ("Q5_0", 8, T.Q5_0, "5.5 bits"),
        ("Q5_1", 9, T.Q5_1, "6 bits"),
        ("IQ2_XXS", 19, T.IQ2_XXS, "about 2.1 bits, needs --imatrix"),
        ("IQ2_XS", 20, T.IQ2_XS, "about 2.3 bits, needs --imatrix"),
        ("IQ2_S", 28, T.IQ2_XS, "about 2.5 bits, needs --imatrix"),
        ("IQ2_M", 29, T.IQ2_S, "about 2.7 bits, needs --imatrix"),
        ("IQ1_S", 24, T.IQ1_S, "about 1.6 bits, needs --imatrix"),
        ("IQ1_M", 31, T.IQ1_M, "about 1.8 bits, needs --imatrix"),
        ("TQ1_0", 36, T.TQ1_0, "1.7 bits, for ternary models"),
        ("TQ2_0", 37, T.TQ2_0, "2.1 bits, for ternary models"),
        ("Q2_K", 10, T.Q2_K, "about 3 bits"),
        ("Q2_K_S", 21, T.Q2_K, "about 2.8 bits, needs --imatrix"),
        ("IQ3_XXS", 23, T.IQ3_XXS, "about 3.1 bits, needs --imatrix"),
        ("IQ3_S", 26, T.IQ3_S, "about 3.4 bits"),
        ("IQ3_M", 27, T.IQ3_S, "about 3.7 bits"),
        ("Q3_K", 12, T.Q3_K, "the same as Q3_K_M"),
        ("IQ3_XS", 22, T.IQ3_S, "about 3.3 bits, needs --imatrix"),
        ("Q3_K_S", 11, T.Q3_K, "about 3.5 bits"),
        ("Q3_K_M", 12, T.Q3_K, "about 3.9 bits"),
        ("Q3_K_L", 13, T.Q3_K, "about 4.3 bits"),
        ("IQ4_NL", 25, T.IQ4_NL, "4.5 bits"),
        ("IQ4_XS", 30, T.IQ4_XS, "4.3 bits"),
        ("Q4_K", 15, T.Q4_K, "the same as Q4_K_M"),
        ("Q4_K_S", 14, T.Q4_K, "about 4.6 bits"),
        ("Q4_K_M", 15, T.Q4_K, "about 4.8 bits, the usual choice"),
        ("Q5_K", 17, T.Q5_K, "the same as Q5_K_M"),
        ("Q5_K_S", 16, T.Q5_K, "about 5.5 bits"),
        ("Q5_K_M", 17, T.Q5_K, "about 5.7 bits"),
        ("Q6_K", 18, T.Q6_K, "6.6 bits"),
        ("Q8_0", 7, T.Q8_0, "8.5 bits"),
        ("F16", 1, T.F16, "16 bits"),
        ("BF16", 32, T.BF16, "16 bits, the range of float32"),
        ("F32", 0, T.F32, "32 bits"),
        ("COPY", 0, T.F32, "tensors as they are"),
    ]
    aliases = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
    return {
        name: FileType(name, aliases.get(name, name), number, base, about)
        for name, number, base, about in rows
    }


FILE_TYPES: Mapping[str, FileType] = _file_types()


def parse_file_type(text: str) -> FileType:
    """The type called `text` (any letter case), or of that number. Raises OptionError."""
    found = find_file_type(text)
    if found is None:
        raise OptionError(f"unknown type {text!r}; known types: {', '.join(FILE_TYPES)}")
    return found


def find_file_type(text: str) -> FileType | None:
    """As parse_file_type, but None for an unknown name; a number stands for its first name in the list."""
    name = text.strip().upper()
    if name in FILE_TYPES:
        return FILE_TYPES[name]
    if not name.isascii() or not name.isdigit():
        return None
    return next((kind for kind in FILE_TYPES.values() if kind.number == int(name)), None)


# The number that stands for a file most of whose tensors have that type.
_OF_MOST: dict[TensorType, str] = {
    T.Q3_K: "Q3_K_M",
    T.Q4_K: "Q4_K_M",
    T.Q5_K: "Q5_K_M",
    T.MXFP4: "MXFP4_MOE",
    T.IQ2_S: "IQ2_M",
}


def guessed_number(kinds: list[TensorType]) -> int:
    """`general.file_type` for a file that does not say it, marked as a guess."""
    most = max(sorted(set(kinds)), key=kinds.count)
    found = FILE_TYPES.get(_OF_MOST.get(most, most.name))
    return (found.number if found else 0) | _GUESSED
