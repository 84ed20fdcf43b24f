"""Random blocks of the quantized tensor types that no public Python code can encode.

Every bit that means a weight, a codebook index, a sign or a sub-block scale is random; only the float16
scales are chosen, so that the decoded weights have a wanted spread. Layouts: ggml's block structures.
"""

from __future__ import annotations

import gguf
import numpy as np
from gguf import GGMLQuantizationType as QType
from gguf_llama import decode

# Where the float16 scale d of a block lies, in bytes; a second entry is dmin with its ratio to d that makes
# the mean of the weights zero (mean of the unsigned codes times mean scale / mean minimum).
SCALES: dict[QType, list[tuple[int, float]]] = {
    QType.Q2_K: [(80, 1.0), (82, 1.5)],
    QType.Q3_K: [(108, 1.0)],
    QType.Q4_K: [(0, 1.0), (2, 7.5)],
    QType.Q5_K: [(0, 1.0), (2, 15.5)],
    QType.Q6_K: [(208, 1.0)],
    QType.IQ1_S: [(0, 1.0)],
    QType.IQ2_XXS: [(0, 1.0)],
    QType.IQ2_XS: [(0, 1.0)],
    QType.IQ2_S: [(0, 1.0)],
    QType.IQ3_XXS: [(0, 1.0)],
    QType.IQ3_S: [(0, 1.0)],
    QType.IQ4_NL: [(0, 1.0)],
    QType.IQ4_XS: [(0, 1.0)],
}
TERNARY = (QType.TQ1_0, QType.TQ2_0)


def set_scale(blocks: np.ndarray, qtype: QType, d: np.ndarray) -> None:
    """Write d, (n_blocks,) float32, into the blocks in place, rounded to float16."""
    if qtype == QType.IQ1_M:  # d is spread over the top four bits of the four 16-bit scale words
        words = blocks[:, 48:56].view(np.uint16)
        bits = d.astype(np.float16).view(np.uint16)
        for i in range(4):
            words[:, i] = (words[:, i] & 0x0FFF) | (((bits >> (4 * i)) & 0xF) << 12)
        return
    for offset, ratio in SCALES[qtype]:
        blocks[:, offset : offset + 2] = (d * ratio).astype(np.float16).view(np.uint8).reshape(-1, 2)


def random_rows(rng: np.random.Generator, shape: tuple[int, int], qtype: QType, std: float) -> np.ndarray:
    """Encoded rows, (shape[0], bytes per row) uint8, whose decoded values have about the given spread."""
    if qtype in TERNARY:
        return gguf.quants.quantize(rng.integers(-1, 2, shape).astype(np.float32) * std * 1.22, qtype)
    size, n_bytes = gguf.GGML_QUANT_SIZES[qtype]
    n_rows, per_row = shape[0], shape[1] // size
    blocks = rng.integers(0, 256, (n_rows * per_row, n_bytes), dtype=np.uint8)
    set_scale(blocks, qtype, np.ones(len(blocks), np.float32))
    unit = float(decode(blocks, qtype).std())
    set_scale(blocks, qtype, rng.uniform(0.6, 1.4, len(blocks)).astype(np.float32) * (std / unit))
    return blocks.reshape(n_rows, per_row * n_bytes)
