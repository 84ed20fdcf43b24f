"""compressed-tensors checkpoints (llm-compressor, Llama 4's FP8 and Int4 releases), as plain weights.

pack-quantized: `weight_packed` int32 (n_out, words), values of 1 to 8 bits packed along the inputs, each
stored plus 2^(bits - 1); `weight_shape` (2,); `weight_scale` (n_out, n_groups), one group when per channel;
asymmetric: `weight_zero_point` packed along the outputs; after activation ordering `weight_g_idx` (n_in,).
nvfp4-pack-quantized and mxfp4-pack-quantized: `weight_packed` uint8 (n_out, n_in / 2), 4-bit floats, low
half first, with `weight_scale` per 16 (FP8, to be divided by `weight_global_scale`) or 32 columns (a power of
two).
float-quantized, int-quantized, naive-quantized: see `scaled.py`.
The library rounds the product to the scale's type; here it stays float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pyllamacpu.convert.quantized import scaled
from pyllamacpu.convert.quantized.packing import (
    FLOAT_KINDS,
    FP4_VALUES,
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
from pyllamacpu.weights.lazy_tensor import Array, LazyTensor, computed, decode

FORMATS = (
    "dense",
    "pack-quantized",
    "float-quantized",
    "int-quantized",
    "naive-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "mixed-precision",
)
_PACKED_PARTS = ("shape", "scale", "zero_point", "g_idx", "global_scale")


def plain_weights(tensors: Tensors, config: Config, where: Path) -> Tensors:
    """The tensors with each compressed weight replaced by its plain one, computed when read.

    Raises CheckpointError for sparse formats, transforms, and others that are not in FORMATS.
    """
    schemes = list(_schemes(config, where))
    bits = {scheme.get("num_bits") for scheme in schemes}
    found: Tensors = {}
    dropped = set()
    for name, tensor in tensors.items():
        if not name.endswith(".weight_packed"):
            found[name] = tensor
            continue
        plain = name.removesuffix("_packed")
        if _asymmetric(schemes) and f"{plain}_zero_point" not in tensors:
            raise CheckpointError(tensor.source, "comes without its zero points")
        found[plain] = _unpacked(tensors, plain, {n for n in bits if isinstance(n, int)})
        dropped |= {f"{plain}_{key}" for key in _PACKED_PARTS}
    rest = {name: tensor for name, tensor in found.items() if name not in dropped}
    quant_config = {"weight_block_size": _block(schemes), "zero_points": _asymmetric(schemes)}
    return scaled.plain_weights(rest, quant_config, where)


def _schemes(config: Config, where: Path) -> Iterator[Mapping[str, Any]]:
    """The weights' scheme of each group of layers."""
    groups = config.get("config_groups") or {}
    if not isinstance(groups, Mapping):
        raise CheckpointError(where, "config_groups is not a JSON object")
    formats = [config.get("format")] + [g.get("format") for g in groups.values() if isinstance(g, Mapping)]
    for form in formats:
        if form is not None and form not in FORMATS:
            raise CheckpointError(where, f"compressed-tensors format {form!r} cannot be read; {FORMATS} can")
    sparsity = config.get("sparsity_config") or {}
    if isinstance(sparsity, Mapping) and sparsity.get("format", "dense") != "dense":
        raise CheckpointError(where, f"sparse weights in the format {sparsity['format']!r} cannot be read")
    if config.get("transform_config"):
        raise CheckpointError(where, "weights that were rotated (transform_config) cannot be read")
    for group in groups.values():
        if isinstance(group, Mapping) and isinstance(group.get("weights"), Mapping):
            yield group["weights"]


def _block(schemes: list[Mapping[str, Any]]) -> list[int] | None:
    return next((scheme["block_structure"] for scheme in schemes if scheme.get("block_structure")), None)


def _asymmetric(schemes: list[Mapping[str, Any]]) -> bool:
    """Whether every layer must have zero points."""
    return bool(schemes) and all(scheme.get("symmetric", True) is False for scheme in schemes)


def _unpacked(tensors: Tensors, plain: str, config_bits: set[int]) -> LazyTensor:
    packed = tensors[f"{plain}_packed"]
    if packed.dtype == "U8":
        return _small_floats(tensors, plain)
    check_matrix(packed, ("I32", "U32"))
    shape = part(tensors, f"{plain}_shape", of=packed)
    check_shape(shape, (2,), ("I64", "I32"))
    n_out, n_in = (int(n) for n in shape.read().tolist())
    bits, dense = _layout(packed, n_in, config_bits)
    check_shape(packed, (n_out, packed.shape[1]))
    scale = part(tensors, f"{plain}_scale", of=packed)
    check_matrix(scale, FLOAT_KINDS)
    n_groups = scale.shape[1]
    check_shape(scale, (n_out, n_groups))
    zero = tensors.get(f"{plain}_zero_point")
    _check_zero(zero, scale, bits)
    g_idx = tensors.get(f"{plain}_g_idx")
    middle = 1 << (bits - 1)

    def rows(start: int, stop: int) -> Array:
        codes = _codes(packed.raw(start, stop), bits, n_in, dense)
        zeros = middle if zero is None else _zeros(zero, bits, n_out, dense)[start:stop]
        order = None if g_idx is None else _order(g_idx, n_in, n_groups)
        return apply_groups(codes, zeros, scale.read(start, stop), order)

    return computed((n_out, n_in), packed.source, rows)


def _layout(packed: LazyTensor, n_in: int, config_bits: set[int]) -> tuple[int, bool]:
    """The bits per value, and whether values cross words; releases before 0.12 left the rest of each word."""
    width = packed.shape[1]
    fits = [
        (bits, dense)
        for bits in sorted(config_bits)
        if 1 <= bits <= 8
        for dense in (True, False)
        if width == (words_for(n_in, bits) if dense else -(-n_in // (32 // bits)))
    ]
    if len({bits for bits, _ in fits}) != 1:
        raise CheckpointError(
            packed.source, f"{width} words per row do not fit {n_in} inputs of {sorted(config_bits)} bits"
        )
    return fits[0]


def _codes(words: Array, bits: int, n: int, dense: bool) -> Array:
    if dense:
        return unpack(words, bits, n)
    unsigned = words.view(np.uint32)
    shifts = np.arange(32 // bits, dtype=np.uint32) * np.uint32(bits)
    values: Array = unsigned[:, :, None] >> shifts & np.uint32((1 << bits) - 1)
    return values.astype(np.uint8).reshape(words.shape[0], -1)[:, :n]


def _check_zero(zero: LazyTensor | None, scale: LazyTensor, bits: int) -> None:
    """Packed along the outputs, or one int8 per scale."""
    if zero is None:
        return
    n_out, n_groups = scale.shape
    if zero.dtype == "I8":
        check_shape(zero, scale.shape)
    elif zero.shape not in ((words_for(n_out, bits), n_groups), (-(-n_out // (32 // bits)), n_groups)):
        raise CheckpointError(zero.source, f"shape {zero.shape} does not fit the scales' {scale.shape}")
    else:
        check_matrix(zero, ("I32", "U32"))


def _zeros(zero: LazyTensor, bits: int, n_out: int, dense: bool) -> Array:
    """Zero points as they are stored in the codes, that is plus 2^(bits - 1)."""
    if zero.dtype == "I8":
        codes: Array = zero.read().astype(np.int16) + (1 << (bits - 1))
        return codes
    packed: Array = _codes(np.ascontiguousarray(zero.raw().T), bits, n_out, dense).T
    return packed


def _order(g_idx: LazyTensor, n_in: int, n_groups: int) -> Array | None:
    if g_idx.n_elements and (g_idx.read() == -1).all():  # never set: the groups are in order
        return None
    return read_groups(g_idx, n_in, n_groups)


def _small_floats(tensors: Tensors, plain: str) -> LazyTensor:
    """4-bit floats, NVIDIA's or microscaling."""
    packed = tensors[f"{plain}_packed"]
    check_matrix(packed, ("U8",))
    n_out, n_in = packed.shape[0], packed.shape[1] * 2
    scale = part(tensors, f"{plain}_scale", of=packed)
    check_matrix(scale, ("F8_E4M3", "U8", "F8_E8M0"))
    check_shape(scale, (n_out, scale.shape[1]))
    if n_in % scale.shape[1]:
        raise CheckpointError(scale.source, f"{scale.shape[1]} groups do not fit {n_in} inputs")
    divisor = tensors.get(f"{plain}_global_scale")
    if (divisor is None) == (scale.dtype == "F8_E4M3"):
        raise CheckpointError(scale.source, "FP8 scales come with a global one, powers of two without")
    if divisor is not None and divisor.n_elements != 1:
        raise CheckpointError(divisor.source, f"shape {divisor.shape} is not one number")

    def rows(start: int, stop: int) -> Array:
        codes = (
            unpack(packed.raw(start, stop).view("<u4"), 4, n_in)
            if n_in % 8 == 0
            else _halves(packed, start, stop)
        )
        power_of_two = divisor is None
        factors = decode(scale.raw(start, stop), "F8_E8M0") if power_of_two else scale.read(start, stop)
        if divisor is not None:
            factors = factors / divisor.read().reshape(-1)[0]
        values = FP4_VALUES[codes].reshape(stop - start, scale.shape[1], n_in // scale.shape[1])
        return (values * factors[:, :, None]).reshape(stop - start, n_in)

    return computed((n_out, n_in), packed.source, rows)


def _halves(packed: LazyTensor, start: int, stop: int) -> Array:
    raw = packed.raw(start, stop)
    return np.stack((raw & 15, raw >> 4), axis=-1).reshape(stop - start, 2 * packed.shape[1])
