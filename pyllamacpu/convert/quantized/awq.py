"""AWQ checkpoints (AutoAWQ's gemm version): 4-bit integers in groups along the inputs, as plain weights.

For a linear layer of n_in inputs and n_out outputs:
  qweight (n_in, n_out / 8) int32: eight outputs per word; from the lowest bits on they are the outputs
    0, 2, 4, 6, 1, 3, 5, 7 of those eight
  qzeros (n_groups, n_out / 8) int32, packed alike
  scales (n_groups, n_out) float16
weight[o, i] = (qweight[i, o] - qzeros[i / group, o]) * scales[i / group, o].
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from pyllamacpu.convert.quantized.packing import (
    FLOAT_KINDS,
    Config,
    Tensors,
    apply_groups,
    check_matrix,
    check_shape,
    part,
)
from pyllamacpu.errors import CheckpointError
from pyllamacpu.weights.lazy_tensor import Array, LazyTensor, computed, decode, turned
from pyllamacpu.weights.tensor_cache import CachedTensor

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_PARTS = ("qweight", "qzeros", "scales")


def plain_weights(tensors: Tensors, config: Config, where: Path) -> Tensors:
    """The tensors with each quantized layer's parts replaced by its weight, computed when read.

    Raises CheckpointError for other versions (gemv …) and for other than 4 bits.
    """
    said = config.get("version") or config.get("checkpoint_format") or config.get("format")
    version = str(said or "gemm").lower()
    bits = config.get("bits", config.get("w_bit", 4))
    if version != "gemm" or bits != 4:
        raise CheckpointError(
            where, f"AWQ version {version!r} with {bits} bits cannot be read; gemm with 4 can"
        )
    found: Tensors = {}
    for name, tensor in tensors.items():
        module, _, last = name.rpartition(".")
        if last not in _PARTS:
            found[name] = tensor
        elif last == "qweight":
            found[f"{module}.weight"] = _weight(tensors, module, config)
        elif f"{module}.qweight" not in tensors:
            raise CheckpointError(tensor.source, f"comes without {module}.qweight")
    return found


def _weight(tensors: Tensors, module: str, config: Config) -> LazyTensor:
    qweight = tensors[f"{module}.qweight"]
    scales = part(tensors, f"{module}.scales", of=qweight)
    check_matrix(qweight, ("I32", "U32"))
    check_matrix(scales, FLOAT_KINDS)
    n_in, n_out = qweight.shape[0], qweight.shape[1] * 8
    n_groups = scales.shape[0]
    check_shape(scales, (n_groups, n_out))
    qzeros = part(tensors, f"{module}.qzeros", of=qweight)
    check_shape(qzeros, (n_groups, n_out // 8), ("I32", "U32"))
    size = config.get("group_size", config.get("q_group_size", n_in // n_groups))
    if n_in % n_groups or size not in (-1, n_in // n_groups):
        raise CheckpointError(
            qweight.source, f"{n_groups} groups do not fit {n_in} inputs and group_size {size!r}"
        )
    cached, cached_zeros, cached_scales = CachedTensor(qweight), CachedTensor(qzeros), CachedTensor(scales)

    def rows(start: int, stop: int) -> npt.NDArray[np.float32]:
        first, last = start // 8, -(-stop // 8)
        wanted = slice(start - first * 8, stop - first * 8)
        codes = _unpack(cached.array(last=stop == n_out)[:, first:last])[wanted]
        zeros = _unpack(cached_zeros.array()[:, first:last])[wanted]
        factors = decode(turned(cached_scales.array()[:, start:stop].T), scales.dtype)
        return apply_groups(codes, zeros, factors)

    return computed((n_out, n_in), qweight.source, rows)


def _unpack(words: Array) -> npt.NDArray[np.uint8]:
    """(n, n_words) words to (8 * n_words, n) values."""
    across = turned(words.T).view(np.uint32)
    values = np.empty((across.shape[0], 8, across.shape[1]), np.uint8)
    for place, output in enumerate(ORDER):
        values[:, output] = across >> np.uint32(4 * place) & np.uint32(15)
    return values.reshape(-1, across.shape[1])
