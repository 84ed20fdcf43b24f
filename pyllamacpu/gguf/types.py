"""The tensor types of GGUF files: names, numbers and block sizes.

Source: the GGUF page of the ggml project (docs/gguf.md) and the block structures of ggml-common.h.
"""

from __future__ import annotations

from enum import IntEnum

from pyllamacpu.errors import OptionError


class TensorType(IntEnum):
    """A tensor's storage format; the value is the number that a GGUF file carries.

    A row is cut into blocks of `block_size` elements that take `block_bytes` bytes each. `words`: what of a
    block is a number of several bytes, as (byte offset, bytes per word, number of words); the rest is bytes.
    """

    block_size: int
    block_bytes: int
    words: tuple[tuple[int, int, int], ...]

    # The defaults are for type checkers, which take TensorType(12), a look-up, for a call of this.
    def __new__(
        cls,
        number: int,
        block_size: int = 1,
        block_bytes: int = 1,
        words: tuple[tuple[int, int, int], ...] = (),
    ) -> TensorType:
        kind = int.__new__(cls, number)
        kind._value_ = number
        kind.block_size, kind.block_bytes, kind.words = block_size, block_bytes, words
        return kind

    # number, elements of a block, its bytes, its words
    F32 = 0, 1, 4, ((0, 4, 1),)
    F16 = 1, 1, 2, ((0, 2, 1),)
    Q4_0 = 2, 32, 18, ((0, 2, 1),)
    Q4_1 = 3, 32, 20, ((0, 2, 2),)
    Q5_0 = 6, 32, 22, ((0, 2, 1), (2, 4, 1))
    Q5_1 = 7, 32, 24, ((0, 2, 2), (4, 4, 1))
    Q8_0 = 8, 32, 34, ((0, 2, 1),)
    Q8_1 = 9, 32, 36, ((0, 2, 2),)
    Q2_K = 10, 256, 84, ((80, 2, 2),)
    Q3_K = 11, 256, 110, ((108, 2, 1),)
    Q4_K = 12, 256, 144, ((0, 2, 2),)
    Q5_K = 13, 256, 176, ((0, 2, 2),)
    Q6_K = 14, 256, 210, ((208, 2, 1),)
    Q8_K = 15, 256, 292, ((0, 4, 1), (260, 2, 16))
    IQ2_XXS = 16, 256, 66, ((0, 2, 1), (2, 4, 16))
    IQ2_XS = 17, 256, 74, ((0, 2, 1), (2, 2, 32))
    IQ3_XXS = 18, 256, 98, ((0, 2, 1), (66, 4, 8))
    IQ1_S = 19, 256, 50, ((0, 2, 1), (34, 2, 8))
    IQ4_NL = 20, 32, 18, ((0, 2, 1),)
    IQ3_S = 21, 256, 110, ((0, 2, 1),)
    IQ2_S = 22, 256, 82, ((0, 2, 1),)
    IQ4_XS = 23, 256, 136, ((0, 2, 2),)
    I8 = 24, 1, 1
    I16 = 25, 1, 2, ((0, 2, 1),)
    I32 = 26, 1, 4, ((0, 4, 1),)
    I64 = 27, 1, 8, ((0, 8, 1),)
    F64 = 28, 1, 8, ((0, 8, 1),)
    IQ1_M = 29, 256, 56, ((48, 2, 4),)
    BF16 = 30, 1, 2, ((0, 2, 1),)
    TQ1_0 = 34, 256, 54, ((52, 2, 1),)
    TQ2_0 = 35, 256, 66, ((64, 2, 1),)
    MXFP4 = 39, 32, 17
    NVFP4 = 40, 64, 36
    Q1_0 = 41, 128, 18, ((0, 2, 1),)
    Q2_0 = 42, 64, 18, ((0, 2, 1),)

    @property
    def runnable(self) -> bool:
        """True when the kernels can compute with this type as a weight; others are listed only."""
        from pyllamacpu.native import lib  # here: files are read, written and listed without the extension

        return int(lib.pl_type_block_bytes(self)) > 0

    @property
    def is_float(self) -> bool:
        """True for F32, F16 and BF16, which the kernels compute with as they are, in float32."""
        from pyllamacpu.native import lib

        return int(lib.pl_type_group(self)) == 0

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
