"""Whether stored weights are all finite, without decoding them where that is not needed.

A block's values are small whole numbers times its scales, so they are finite when these are: of most types,
one or two 16-bit floats at a fixed place in the block (ggml-common.h has the structures).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllamacpu.gguf.types import TensorType

T = TensorType
_LARGEST_HALF = 0x7BFF  # 65504
_HALF_EXPONENT, _BFLOAT_EXPONENT = 0x7C00, 0x7F80  # all ones: infinity or NaN

_SCALES: dict[TensorType, tuple[int, ...]] = {  # bytes from the begin of a block, of its 16-bit floats
    T.Q4_0: (0,),
    T.Q4_1: (0, 2),
    T.Q5_0: (0,),
    T.Q5_1: (0, 2),
    T.Q8_0: (0,),
    T.Q2_K: (80, 82),
    T.Q3_K: (108,),
    T.Q4_K: (0, 2),
    T.Q5_K: (0, 2),
    T.Q6_K: (208,),
    T.IQ2_XXS: (0,),
    T.IQ2_XS: (0,),
    T.IQ2_S: (0,),
    T.IQ3_XXS: (0,),
    T.IQ3_S: (0,),
    T.IQ1_S: (0,),
    T.IQ4_NL: (0,),
    T.IQ4_XS: (0,),
    T.TQ1_0: (52,),
    T.TQ2_0: (64,),
}


def stored_finite(stored: npt.NDArray[Any], kind: TensorType) -> bool | None:
    """Whether elements (uint16 for F16 and BF16) or blocks (uint8) are finite; None: only decoding tells."""
    if kind in (T.F32, T.F64):
        with np.errstate(over="ignore", invalid="ignore"):
            total = stored.sum(dtype=np.float64)
        return bool(np.isfinite(total) or np.isfinite(stored).all())
    if kind in (T.F16, T.BF16):
        return not _any_from(stored, _HALF_EXPONENT if kind == T.F16 else _BFLOAT_EXPONENT)
    if kind in (T.I8, T.I16, T.I32, T.I64):
        return True
    if kind not in _SCALES:
        return None
    return not any(_any_from(halves, _HALF_EXPONENT) for halves in _scales(stored, kind))


def saturated(blocks: npt.NDArray[np.uint8], kind: TensorType) -> bool:
    """Whether a block's scale is the largest 16-bit float: its values were too large for the type."""
    return any(_any_from(halves, _LARGEST_HALF) for halves in _scales(blocks, kind))


def _scales(blocks: npt.NDArray[Any], kind: TensorType) -> Iterator[npt.NDArray[np.uint16]]:
    """The 16-bit floats of all blocks, place by place; nothing is copied, since blocks are whole halves."""
    halves = np.ascontiguousarray(blocks).reshape(-1, kind.block_bytes).view("<u2")
    return (halves[:, at // 2] for at in _SCALES.get(kind, ()))


def _any_from(halves: npt.NDArray[Any], least: int) -> bool:
    """Whether one of these 16-bit floats has these bits or higher ones, but for the sign."""
    return bool(halves.size) and int((halves & np.uint16(0x7FFF)).max()) >= least
