"""GPTQ checkpoints: integers of 2, 3, 4 or 8 bits in groups along the inputs, as plain weights.

For a linear layer of n_in inputs and n_out outputs (AutoGPTQ and GPTQModel):
  qweight (n_in * bits / 32, n_out) int32: packed along the inputs, lowest bits first
  qzeros (n_groups, n_out * bits / 32) int32: packed along the outputs; one less than the zero point in the
    format `gptq`, the zero point itself in `gptq_v2`
  scales (n_groups, n_out) float16
  g_idx (n_in,) int32: the group of each input, in any order after activation ordering
weight[o, i] = (qweight[i, o] - zero[g_idx[i], o]) * scales[g_idx[i], o].
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
    read_groups,
    unpack,
    words_for,
)
from pyllamacpu.errors import CheckpointError
from pyllamacpu.weights.lazy_tensor import LazyTensor, computed, decode, turned
from pyllamacpu.weights.tensor_cache import CachedTensor

BITS = (2, 3, 4, 8)
_PARTS = ("qweight", "qzeros", "scales", "g_idx")


def plain_weights(tensors: Tensors, config: Config, where: Path) -> Tensors:
    """The tensors with each quantized layer's parts replaced by its weight, computed when read.

    Layers left in floating point pass. Raises CheckpointError for other formats (marlin, bitblas …).
    """
    zero_offset = 1 if stated_format(config, where) == "gptq" else 0
    found: Tensors = {}
    for name, tensor in tensors.items():
        module, _, last = name.rpartition(".")
        if last not in _PARTS:
            found[name] = tensor
        elif last == "qweight":
            found[f"{module}.weight"] = _weight(tensors, module, config, zero_offset)
        elif f"{module}.qweight" not in tensors:
            raise CheckpointError(tensor.source, f"comes without {module}.qweight")
    return found


def stated_format(config: Config, where: Path) -> str:
    """`gptq` or `gptq_v2`, as the config says."""
    form = str(config.get("checkpoint_format") or config.get("format") or "gptq").lower()
    if form not in ("gptq", "gptq_v2"):
        raise CheckpointError(where, f"GPTQ in the format {form!r} cannot be read; gptq and gptq_v2 can")
    return form


def _weight(tensors: Tensors, module: str, config: Config, zero_offset: int) -> LazyTensor:
    qweight = tensors[f"{module}.qweight"]
    qzeros = part(tensors, f"{module}.qzeros", of=qweight)
    scales = part(tensors, f"{module}.scales", of=qweight)
    check_matrix(qweight, ("I32", "U32"))
    check_matrix(qzeros, ("I32", "U32"))
    check_matrix(scales, FLOAT_KINDS)
    n_groups, n_out = scales.shape
    bits = qzeros.shape[1] * 32 // n_out
    check_shape(qweight, (qweight.shape[0], n_out))
    check_shape(qzeros, (n_groups, -(-n_out * bits // 32)))
    if bits not in BITS or (qweight.shape[0] * 32) % bits:
        raise CheckpointError(qweight.source, f"has {bits} bits per weight; {BITS} can be read")
    _check_bits(config, module, bits, qweight)
    n_in = qweight.shape[0] * 32 // bits
    g_idx = tensors.get(f"{module}.g_idx")
    if g_idx is None:
        _check_groups(config, qweight, n_in, n_groups)
    cached, cached_zeros, cached_scales = CachedTensor(qweight), CachedTensor(qzeros), CachedTensor(scales)

    def rows(start: int, stop: int) -> npt.NDArray[np.float32]:
        words = turned(cached.array(last=stop == n_out)[:, start:stop].T)
        codes = unpack(words, bits, n_in)
        first = start // 32  # 32 values fill a whole number of words
        packed = cached_zeros.array()[:, first * bits : words_for(stop, bits)]
        zeros = turned(unpack(packed, bits, stop - first * 32)[:, start - first * 32 :].T)
        zeros = (zeros + zero_offset) & ((1 << bits) - 1)
        factors = decode(turned(cached_scales.array()[:, start:stop].T), scales.dtype)
        order = None if g_idx is None else read_groups(g_idx, n_in, n_groups)
        return apply_groups(codes, zeros, factors, order)

    return computed((n_out, n_in), qweight.source, rows)


def _check_bits(config: Config, module: str, bits: int, qweight: LazyTensor) -> None:
    """The config may give some layers other bits (`dynamic`); otherwise it must agree."""
    said = config.get("bits", bits)
    if said != bits and not config.get("dynamic"):
        raise CheckpointError(qweight.source, f"{module} has {bits} bits per weight, the config says {said}")


def _check_groups(config: Config, qweight: LazyTensor, n_in: int, n_groups: int) -> None:
    """Without g_idx the groups are runs of group_size inputs."""
    size = config.get("group_size", 0)
    size = n_in if size == -1 else size
    if not isinstance(size, int) or size <= 0 or -(-n_in // size) != n_groups:
        raise CheckpointError(
            qweight.source,
            f"{n_groups} groups do not fit {n_in} inputs and group_size {size!r}; g_idx is missing",
        )
