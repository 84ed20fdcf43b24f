"""The tensor types of GGUF files: names, numbers and block sizes.

Source: the GGUF page of the ggml project (docs/gguf.md) and the block structures of ggml-common.h.
"""

from __future__ import annotations

from enum import IntEnum

from pyllamacpu.errors import OptionError


class TensorType(IntEnum):
    """A tensor's storage format; the value is the number that a GGUF file carries.

    A row is cut into blocks of `block_size` elements that take `block_bytes` bytes each.
    """

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q8_1 = 9
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    Q8_K = 15
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39
    NVFP4 = 40
    Q1_0 = 41
    Q2_0 = 42

    @property
    def block_size(self) -> int:
        """Elements per block."""
        return _LAYOUT[self][0]

    @property
    def block_bytes(self) -> int:
        """Bytes per block."""
        return _LAYOUT[self][1]

    @property
    def runnable(self) -> bool:
        """True when the kernels can compute with this type as a weight; others are listed only."""
        return self not in _NOT_RUNNABLE

    @property
    def bits_per_weight(self) -> float:
        """Bits per element, block scales included."""
        return 8 * self.block_bytes / self.block_size

    def row_bytes(self, n_elements: int) -> int:
        """Bytes of a row of `n_elements`. Raises OptionError when a row is not a whole number of blocks."""
        n_blocks, rest = divmod(n_elements, self.block_size)
        if rest or n_elements < 0:
            raise OptionError(
                f"a row of {n_elements} elements cannot be {self.name}: "
                f"rows must be a multiple of {self.block_size}; choose a type with smaller blocks"
            )
        return n_blocks * self.block_bytes


# type: (elements per block, bytes per block)
_LAYOUT: dict[TensorType, tuple[int, int]] = {
    TensorType.F32: (1, 4),
    TensorType.F16: (1, 2),
    TensorType.BF16: (1, 2),
    TensorType.F64: (1, 8),
    TensorType.I8: (1, 1),
    TensorType.I16: (1, 2),
    TensorType.I32: (1, 4),
    TensorType.I64: (1, 8),
    TensorType.Q4_0: (32, 18),
    TensorType.Q4_1: (32, 20),
    TensorType.Q5_0: (32, 22),
    TensorType.Q5_1: (32, 24),
    TensorType.Q8_0: (32, 34),
    TensorType.Q8_1: (32, 36),
    TensorType.Q2_K: (256, 84),
    TensorType.Q3_K: (256, 110),
    TensorType.Q4_K: (256, 144),
    TensorType.Q5_K: (256, 176),
    TensorType.Q6_K: (256, 210),
    TensorType.Q8_K: (256, 292),
    TensorType.IQ1_S: (256, 50),
    TensorType.IQ1_M: (256, 56),
    TensorType.IQ2_XXS: (256, 66),
    TensorType.IQ2_XS: (256, 74),
    TensorType.IQ2_S: (256, 82),
    TensorType.IQ3_XXS: (256, 98),
    TensorType.IQ3_S: (256, 110),
    TensorType.IQ4_NL: (32, 18),
    TensorType.IQ4_XS: (256, 136),
    TensorType.TQ1_0: (256, 54),
    TensorType.TQ2_0: (256, 66),
    TensorType.MXFP4: (32, 17),
    TensorType.NVFP4: (64, 36),
    TensorType.Q1_0: (128, 18),
    TensorType.Q2_0: (64, 18),
}

_NOT_RUNNABLE = frozenset(
    TensorType[name] for name in ("I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K", "NVFP4", "Q1_0", "Q2_0")
)

# Numbers that old files carry and the format has since dropped.
REMOVED_TYPES: dict[int, str] = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}


def parse_type(name: str) -> TensorType:
    """The type called `name` in any letter case (`q4_k`, `F16`). Raises OptionError for an unknown name."""
    found = TensorType.__members__.get(name.strip().upper())
    if found is None:
        raise OptionError(
            f"unknown tensor type {name!r}; known types: {', '.join(t.name.lower() for t in TensorType)}"
        )
    return found
