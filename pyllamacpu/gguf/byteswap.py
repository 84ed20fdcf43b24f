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


def swap_tensor(data: npt.NDArray[np.uint8], kind: TensorType) -> npt.NDArray[np.uint8]:
    """A copy of `data` (flat uint8, whole blocks of `kind`) with the bytes of each word reversed."""
    swapped: npt.NDArray[np.uint8] = data.copy()
    blocks = swapped.reshape(-1, kind.block_bytes)  # (n_blocks, block_bytes)
    source = data.reshape(-1, kind.block_bytes)
    for offset, width, count in kind.words:
        words = slice(offset, offset + width * count)
        shape = (len(blocks), count, width)
        blocks[:, words] = source[:, words].reshape(shape)[:, :, ::-1].reshape(len(blocks), -1)
    return swapped
