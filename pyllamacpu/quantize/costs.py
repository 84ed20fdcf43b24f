"""What the quantizers minimise: the weight of each element's squared error, per type.

With importance, the same choices as llama.cpp's quantizers make (ggml-quants.c), so that errors can be
compared with theirs. Without it theirs are x^2 for most types, and |x| for the absolute errors of Q2_K; here
all of these have |x| for the squared errors, which lowers both the error by x^2 and the plain one; in Q2_K,
whose grid need not hold zero, small values beside large ones count a little too.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pyllamacpu.gguf.types import TensorType

T = TensorType
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

_LEGACY = frozenset({T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1})
_PLAIN_IMPORTANCE = frozenset({T.Q6_K, T.Q8_0, T.MXFP4, T.TQ1_0, T.TQ2_0, T.F32, T.F16, T.BF16})
_MAGNITUDES = frozenset({T.Q3_K, T.Q6_K, T.IQ4_NL, T.IQ4_XS})
_ROOT_SHARES = {T.Q2_K: 0.25, T.Q4_K: 1.0, T.Q5_K: 1.0}  # of the root mean square, beside |x|
_CODEBOOKS = frozenset({T.IQ2_S, T.IQ3_XXS, T.IQ3_S})  # x^2 alone leaves small values to chance


def cost_weights(array: Floats, kind: TensorType, importance: Floats | None = None) -> Doubles:
    """(rows, cols) weights w of the error sum(w * (x - dequantized)^2) that `quantize` makes small.

    `array`: (rows, cols); `importance`: (cols,) or None. With it: the importance itself, or times
    sqrt(mean square of the block or row + x^2). Without it: 1 for types that were made for rounding, |x|,
    the root mean square of 32 + |x| (Q4_K, Q5_K), a quarter of it + |x| (Q2_K), or x^2 + the block's mean
    square (codebooks).
    """
    x = array.astype(np.float64)
    if importance is not None:
        weights = np.broadcast_to(importance.astype(np.float64), x.shape)
        return weights.copy() if kind in _PLAIN_IMPORTANCE else weights * np.sqrt(_spread(x, kind) + x * x)
    if kind in _MAGNITUDES:
        return np.abs(x)
    if kind in _CODEBOOKS:
        return x * x + _mean_square(x, 256)
    if kind in _ROOT_SHARES:
        return _ROOT_SHARES[kind] * np.sqrt(_mean_square(x, 32)) + np.abs(x)
    return np.ones_like(x)


def _spread(x: Doubles, kind: TensorType) -> Doubles:
    if kind in _LEGACY:
        mean: Doubles = np.mean(x * x, axis=1, keepdims=True)
        return mean
    factor = 1.0 if kind in (T.Q2_K, T.IQ2_XXS, T.IQ2_XS) else 2.0
    return factor * _mean_square(x, kind.block_size)


def _mean_square(x: Doubles, n: int) -> Doubles:
    """Of every n columns, for each of them: (rows, cols)."""
    return np.repeat(np.mean((x * x).reshape(len(x), -1, n), axis=2), n, axis=1)
