"""Turning the tensors of a big-endian file into little-endian bytes.

A big-endian file holds what a big-endian machine has in memory: every field that the block formats treat as
a 16, 32 or 64-bit number has its bytes reversed, and byte arrays are unchanged. Fields that are declared as
bytes but written and read as words count as words: the fifth bits of Q5_0 and Q5_1, the signs of IQ2_XXS
and IQ3_XXS, the scales of IQ1_M.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pyllamacpu.gguf.types import TensorType

T = TensorType

# tensor type: ((byte offset in the block, bytes per word, number of words), ...); others hold bytes only
_WORDS: dict[TensorType, tuple[tuple[int, int, int], ...]] = {
    T.F32: ((0, 4, 1),),
    T.F16: ((0, 2, 1),),
    T.BF16: ((0, 2, 1),),
    T.F64: ((0, 8, 1),),
    T.I16: ((0, 2, 1),),
    T.I32: ((0, 4, 1),),
    T.I64: ((0, 8, 1),),
    T.Q4_0: ((0, 2, 1),),
    T.Q4_1: ((0, 2, 2),),
    T.Q5_0: ((0, 2, 1), (2, 4, 1)),
    T.Q5_1: ((0, 2, 2), (4, 4, 1)),
    T.Q8_0: ((0, 2, 1),),
    T.Q8_1: ((0, 2, 2),),
    T.Q2_K: ((80, 2, 2),),
    T.Q3_K: ((108, 2, 1),),
    T.Q4_K: ((0, 2, 2),),
    T.Q5_K: ((0, 2, 2),),
    T.Q6_K: ((208, 2, 1),),
    T.Q8_K: ((0, 4, 1), (260, 2, 16)),
    T.IQ1_S: ((0, 2, 1), (34, 2, 8)),
    T.IQ1_M: ((48, 2, 4),),
    T.IQ2_XXS: ((0, 2, 1), (2, 4, 16)),
    T.IQ2_XS: ((0, 2, 1), (2, 2, 32)),
    T.IQ2_S: ((0, 2, 1),),
    T.IQ3_XXS: ((0, 2, 1), (66, 4, 8)),
    T.IQ3_S: ((0, 2, 1),),
    T.IQ4_NL: ((0, 2, 1),),
    T.IQ4_XS: ((0, 2, 2),),
    T.TQ1_0: ((52, 2, 1),),
    T.TQ2_0: ((64, 2, 1),),
    T.Q1_0: ((0, 2, 1),),
    T.Q2_0: ((0, 2, 1),),
}


def swap_tensor(data: npt.NDArray[np.uint8], kind: TensorType) -> npt.NDArray[np.uint8]:
    """A copy of `data` (flat uint8, whole blocks of `kind`) with the bytes of each word reversed."""
    swapped: npt.NDArray[np.uint8] = data.copy()
    blocks = swapped.reshape(-1, kind.block_bytes)  # (n_blocks, block_bytes)
    source = data.reshape(-1, kind.block_bytes)
    for offset, width, count in _WORDS.get(kind, ()):
        words = slice(offset, offset + width * count)
        shape = (len(blocks), count, width)
        blocks[:, words] = source[:, words].reshape(shape)[:, :, ::-1].reshape(len(blocks), -1)
    return swapped
