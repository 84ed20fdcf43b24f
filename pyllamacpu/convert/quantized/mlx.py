"""MLX-quantized checkpoints (mlx_lm.convert -q), as plain weights.

For a layer or embedding of n_in columns, in groups of `group_size` along them:
  weight (n_out, n_in * bits / 32) uint32: codes of 2, 3, 4, 5, 6 or 8 bits, lowest bits first, words filled
    without gaps
  scales, biases (n_out, n_groups) float: weight[o, i] = code * scales[o, g] + biases[o, g]
Modes without biases have scales in uint8: mxfp4 (4-bit floats, powers of two per 32), mxfp8 (E4M3, powers of
two per 32), nvfp4 (4-bit floats, E4M3 scales per 16). config.json's `quantization` holds bits and group_size,
and other ones of single layers by their names.
Source: the description of mlx.core.quantize and dequantize.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyllamacpu.convert.quantized.packing import (
    FLOAT_KINDS,
    FP4_VALUES,
    Config,
    Tensors,
    check_matrix,
    check_shape,
    part,
    unpack,
)
from pyllamacpu.errors import CheckpointError
from pyllamacpu.weights.lazy_tensor import Array, LazyTensor, computed, decode

BITS = (2, 3, 4, 5, 6, 8)
_FLOAT_MODES = {"mxfp4": (4, 32, "F8_E8M0"), "mxfp8": (8, 32, "F8_E8M0"), "nvfp4": (4, 16, "F8_E4M3")}


def is_mlx(tensors: Tensors) -> bool:
    """Whether there are words of codes with scales beside them, as only MLX names them."""
    modules = (name.removesuffix("scales") for name in tensors if name.endswith(".scales"))
    return any(
        f"{module}weight" in tensors and tensors[f"{module}weight"].dtype == "U32" for module in modules
    )


def plain_weights(tensors: Tensors, config: Config, where: Path) -> Tensors:
    """The tensors with each quantized weight replaced by its plain one, computed when read.

    Raises CheckpointError where bits or group_size are not stated or do not fit.
    """
    found: Tensors = {}
    for name, tensor in tensors.items():
        module, _, last = name.rpartition(".")
        quantized = f"{module}.scales" in tensors
        if last == "weight" and quantized and tensor.dtype == "U32":
            found[name] = _weight(tensors, module, _settings(config, module), where)
        elif last not in ("scales", "biases") or not quantized:
            found[name] = tensor
    return found


def _settings(config: Config, module: str) -> Config:
    """The layer's own settings over those of all."""
    own = config.get(module)
    return {**config, **own} if isinstance(own, Mapping) else config


def _weight(tensors: Tensors, module: str, config: Config, where: Path) -> LazyTensor:
    words = tensors[f"{module}.weight"]
    check_matrix(words, ("U32",))
    mode = str(config.get("mode") or "affine")
    if mode != "affine" and mode not in _FLOAT_MODES:
        raise CheckpointError(
            where, f"MLX's mode {mode!r} cannot be read; affine, {', '.join(_FLOAT_MODES)} can"
        )
    usual = _FLOAT_MODES.get(mode, (None, None, ""))
    bits = _number(config.get("bits", usual[0]), "bits", where)
    size = _number(config.get("group_size", usual[1]), "group_size", where)
    n_out, n_in = words.shape[0], words.shape[1] * 32 // bits if bits in BITS else 0
    if not n_in or words.shape[1] * 32 % bits or n_in % size:
        raise CheckpointError(
            words.source, f"shape {words.shape} does not fit {bits} bits in groups of {size}"
        )
    scales = part(tensors, f"{module}.scales", of=words)
    check_shape(scales, (n_out, n_in // size), FLOAT_KINDS if mode == "affine" else ("U8",))
    if mode != "affine":
        return _small_floats(words, scales, (n_out, n_in), mode)
    biases = part(tensors, f"{module}.biases", of=words)
    check_shape(biases, scales.shape, FLOAT_KINDS)

    def rows(start: int, stop: int) -> Array:
        values = unpack(words.raw(start, stop), bits, n_in).astype("f4").reshape(stop - start, -1, size)
        values *= scales.read(start, stop)[:, :, None]
        values += biases.read(start, stop)[:, :, None]
        return values.reshape(stop - start, n_in)

    return computed((n_out, n_in), words.source, rows)


def _small_floats(words: LazyTensor, scales: LazyTensor, shape: tuple[int, int], mode: str) -> LazyTensor:
    bits, size, kind = _FLOAT_MODES[mode]

    def rows(start: int, stop: int) -> Array:
        codes = unpack(words.raw(start, stop), bits, shape[1])
        values = FP4_VALUES[codes] if bits == 4 else decode(codes, "F8_E4M3")
        factors = decode(scales.raw(start, stop), kind)
        return (values.reshape(stop - start, -1, size) * factors[:, :, None]).reshape(stop - start, shape[1])

    return computed(shape, words.source, rows)


def _number(value: Any, key: str, where: Path) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise CheckpointError(
            where,
            f"the weights are MLX-quantized, and `quantization` in config.json does not say how: {key} is "
            f"{value!r}; get config.json again",
        )
    return value
