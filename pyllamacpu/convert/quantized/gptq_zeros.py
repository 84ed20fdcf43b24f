"""Which of GPTQ's two formats the stored zero points are in: told by the data, not by the label.

`gptq` stores one less than the zero point, `gptq_v2` the zero point. Symmetric quantization has the middle
code as its zero point everywhere, so what is stored there tells. Otherwise weights scatter around zero: the
mean of code - stored is near 1 in the one format and near 0 in the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllamacpu.convert.quantized.packing import Config, Tensors, group_numbers, unpack
from pyllamacpu.errors import CheckpointError

V1, V2 = "gptq", "gptq_v2"
_MATRICES = 16  # that the mean is taken of
_WORDS = 96  # rows of qweight read of each: whole values of 2, 3, 4 and 8 bits
_FEWEST = 20_000  # values that a mean must be of to count
_NEAR = 0.2  # steps


def stored_format(tensors: Tensors, stated: str, config: Config, where: Path) -> str:
    """V1 or V2. Raises CheckpointError where the data contradicts the label without telling the right one."""
    names = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    layers = [(name, bits) for name in names if (bits := _bits(tensors, name)) in (2, 3, 4, 8)]
    if not layers:
        return stated
    low, high = _range(tensors, layers)
    if low == high == 0:
        return V2
    if low == high == -1:
        return V1
    if low == high and config.get("sym") is True:
        raise CheckpointError(
            where, "says sym, but its stored zero points are neither the middle code nor one less"
        )
    differences = np.concatenate(list(_differences(tensors, layers)))
    mean = float(differences.mean()) if differences.size >= _FEWEST else None
    other, expected = (V2, 0.0) if stated == V1 else (V1, 1.0)
    if mean is not None and abs(mean - expected) < _NEAR:
        raise CheckpointError(
            where,
            f"says that the format of its zero points is {stated}, but the weights scatter around zero only "
            f"if it is {other}; if that is so, set checkpoint_format to {other!r} there",
        )
    return stated


def _bits(tensors: Tensors, name: str) -> int:
    """Bits per weight by the shapes; 0 for parts that are missing or do not fit."""
    zeros, scales = tensors.get(f"{name}.qzeros"), tensors.get(f"{name}.scales")
    if zeros is None or scales is None or len(zeros.shape) != 2 or len(scales.shape) != 2:
        return 0
    fits = zeros.shape[0] == scales.shape[0] and scales.shape[1] and zeros.dtype in ("I32", "U32")
    return zeros.shape[1] * 32 // scales.shape[1] if fits and zeros.n_elements else 0


def _zeros(tensors: Tensors, name: str, bits: int) -> npt.NDArray[np.uint8]:
    """(n_groups, n_out) as stored."""
    return unpack(tensors[f"{name}.qzeros"].raw(), bits, tensors[f"{name}.scales"].shape[1])


def _range(tensors: Tensors, layers: list[tuple[str, int]]) -> tuple[int, int]:
    """The smallest and largest stored zero point of all layers, counted from the middle code."""
    low, high = 256, -256
    for name, bits in layers:
        values = _zeros(tensors, name, bits)
        middle = 1 << (bits - 1)
        low, high = min(low, int(values.min()) - middle), max(high, int(values.max()) - middle)
    return low, high


def _differences(tensors: Tensors, layers: list[tuple[str, int]]) -> Iterator[npt.NDArray[Any]]:
    """code - stored zero point, of a sample of the weights."""
    for name, bits in layers[:: max(1, len(layers) // _MATRICES)]:
        qweight = tensors[f"{name}.qweight"]
        stored = _zeros(tensors, name, bits)
        n_groups, n_out = stored.shape
        if len(qweight.shape) != 2 or qweight.shape[1] != n_out or qweight.dtype not in ("I32", "U32"):
            continue
        words = qweight.raw(0, min(qweight.n_rows, _WORDS))
        n_in = words.shape[0] * 32 // bits
        codes = unpack(np.ascontiguousarray(words.T), bits, n_in)  # (n_out, n_in)
        g_idx = tensors.get(f"{name}.g_idx")
        size = max(1, -(-(qweight.n_rows * 32 // bits) // n_groups))
        groups = np.arange(n_in) // size if g_idx is None else group_numbers(g_idx)[:n_in]
        if 0 < groups.size == n_in and 0 <= groups.min() <= groups.max() < n_groups:
            yield (codes.astype(np.int16) - stored[groups].T).reshape(-1)
    yield np.empty(0, np.int16)
