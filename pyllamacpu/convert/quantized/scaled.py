"""Weights stored as small numbers with scales beside them (`weight` and `weight_scale`), as plain weights.

The scale's shape tells what it is for: one for all, one per row, one per group of columns in each row, one
per block of rows and columns, or any shape that broadcasts (experts). The product is taken in float32.

Formats: FP8 as fbgemm writes it (per row), fine-grained FP8 (`weight_scale_inv`, blocks of 128 x 128), and
compressed-tensors' float-quantized and int-quantized, the latter with zero points.
"""

from __future__ import annotations

from math import prod
from pathlib import Path

from pyllamacpu.convert.quantized.packing import Config, Tensors, apply_groups
from pyllamacpu.errors import CheckpointError
from pyllamacpu.weights.lazy_ops import reshape, scale_blocks, scale_rows
from pyllamacpu.weights.lazy_tensor import Array, LazyTensor, computed

SMALL = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8")
# What only activations or the cache are scaled by: not needed to know the weights.
UNUSED = (
    "input_scale",
    "input_scale_ub",
    "input_zero_point",
    "input_global_scale",
    "output_scale",
    "output_zero_point",
    "activation_scale",
    "k_scale",
    "v_scale",
    "q_scale",
    "prob_scale",
    "k_zero_point",
    "v_zero_point",
)
_COMPANIONS = tuple(
    f"weight_{key}"
    for key in ("scale", "scale_inv", "zero_point", "shape", "global_scale", "g_idx", "packed")
)


def is_unused(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last in UNUSED or last.endswith(("_input_scale", "_activation_scale"))


def plain_weights(tensors: Tensors, config: Config, where: Path) -> Tensors:
    """The tensors with each FP8 or int8 weight scaled when it is read. Raises CheckpointError when a weight
    has no scale, or one whose shape does not fit.
    """
    block = _block_size(config, where)
    found: Tensors = {}
    used = set()
    for name, tensor in tensors.items():
        if tensor.dtype in SMALL and not is_unused(name) and not name.endswith(("_scale", "_zero_point")):
            found[name] = scaled(tensors, name, block)
            if config.get("zero_points") and f"{name}_zero_point" not in tensors and tensor.dtype == "I8":
                raise CheckpointError(tensor.source, "comes without its zero points")
            used |= {f"{name}_scale", f"{name}_scale_inv", f"{name}_zero_point"}
        elif not is_unused(name):
            found[name] = tensor
    rest = {name: tensor for name, tensor in found.items() if name not in used}
    for name, tensor in rest.items():
        if name.endswith(_COMPANIONS):
            raise CheckpointError(tensor.source, "comes without the weight that it is for")
    return rest


def _block_size(config: Config, where: Path) -> tuple[int, int]:
    size = config.get("weight_block_size") or (128, 128)
    if (
        not isinstance(size, list | tuple)
        or len(size) != 2
        or not all(isinstance(n, int) and n > 0 for n in size)
    ):
        raise CheckpointError(where, f"weight_block_size {size!r} is not two whole numbers")
    return size[0], size[1]


def scaled(tensors: Tensors, name: str, block: tuple[int, int]) -> LazyTensor:
    """The tensor `name` times its scale, in float32."""
    weight = tensors[name]
    scale = tensors.get(f"{name}_scale") or tensors.get(f"{name}_scale_inv")
    if scale is None:
        raise CheckpointError(weight.source, f"is {weight.dtype} without {name.rpartition('.')[2]}_scale")
    zero = tensors.get(f"{name}_zero_point")
    if len(scale.shape) == 2 == len(weight.shape) and f"{name}_scale" not in tensors:  # fine-grained
        return scale_blocks(weight, scale, block)
    if prod(scale.shape) == 1 and zero is None:
        return scale_rows(weight, reshape(scale, (1,)))
    if len(weight.shape) == 2 and scale.shape in ((weight.shape[0],), (weight.shape[0], 1)) and zero is None:
        return scale_rows(weight, scale)
    if len(weight.shape) == 2 and len(scale.shape) == 2 and scale.shape[0] == weight.shape[0]:
        return grouped(weight, scale, zero)
    if zero is not None and (prod(scale.shape) == 1 or scale.shape == weight.shape[:1]):
        return grouped(weight, reshape(scale, (-1, 1)), reshape(zero, (-1, 1)))
    if zero is not None:
        raise CheckpointError(zero.source, f"zero points of shape {zero.shape} cannot be read")
    if len(scale.shape) == len(weight.shape) and all(
        n in (1, whole) for n, whole in zip(scale.shape, weight.shape, strict=True)
    ):
        return _broadcast(weight, scale)
    return _in_blocks(weight, scale, block)


def grouped(weight: LazyTensor, scale: LazyTensor, zero: LazyTensor | None) -> LazyTensor:
    """A matrix (rows, columns) with `scale` and `zero` of (rows or 1, groups)."""
    rows, columns = weight.shape
    if not scale.shape[1] or columns % scale.shape[1] or scale.shape[0] not in (1, rows):
        raise CheckpointError(
            scale.source, f"{scale.shape[1]} groups do not fit the {columns} columns of {weight.source}"
        )
    if zero is not None and zero.shape != scale.shape:
        raise CheckpointError(zero.source, f"shape {zero.shape} differs from the scales' {scale.shape}")

    def read(start: int, stop: int) -> Array:
        low, high = (start, stop) if scale.shape[0] == rows else (0, 1)
        zeros = 0 if zero is None else zero.read(low, high)
        return apply_groups(weight.read(start, stop), zeros, scale.read(low, high))

    return computed(weight.shape, weight.source, read)


def _broadcast(weight: LazyTensor, scale: LazyTensor) -> LazyTensor:
    def read(start: int, stop: int) -> Array:
        factor = scale.read(0, 1) if scale.shape[0] == 1 else scale.read(start, stop)
        values = weight.read(start, stop).astype("f4", copy=False)
        values *= factor
        return values

    return computed(weight.shape, weight.source, read)


def _in_blocks(weight: LazyTensor, scale: LazyTensor, block: tuple[int, int]) -> LazyTensor:
    """A matrix in blocks, or experts (n_experts, rows, columns) whose rows fill whole blocks."""
    if len(weight.shape) == 3 and len(scale.shape) == 3 and weight.shape[1] % block[0] == 0:
        flat = reshape(weight, (-1, weight.shape[2]))
        return reshape(scale_blocks(flat, reshape(scale, (-1, scale.shape[2])), block), weight.shape)
    if len(weight.shape) != 2 or len(scale.shape) != 2:
        raise CheckpointError(scale.source, f"shape {scale.shape} does not fit the weight's {weight.shape}")
    return scale_blocks(weight, scale, block)
