"""bitsandbytes checkpoints: nf4 and fp4 in blocks, int8 per row, as plain weights.

4 bits: `weight` uint8, two elements per byte, the first in the upper half, all rows one after another;
`weight.quant_map` (16,) float32, the values of the codes; `weight.absmax`, a factor per block of elements;
`weight.quant_state.bitsandbytes__nf4` (or fp4): JSON as uint8 with the shape and block size. With double
quantization absmax is uint8: codes of `weight.nested_quant_map` (256,), times `weight.nested_absmax` of their
block, plus `nested_offset`.
8 bits: `weight` int8 (n_out, n_in) and `SCB` (n_out,): the largest magnitude of each row, which is 127.
Source: QuantState and dequantize_4bit of bitsandbytes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllamacpu.convert.quantized.packing import Config, Tensors, check_shape, part
from pyllamacpu.errors import CheckpointError
from pyllamacpu.weights.lazy_tensor import Array, LazyTensor, computed, view_of

_STATE = ".quant_state.bitsandbytes__"
_TYPES = ("nf4", "fp4")
_PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
_ONE_127TH = np.float32(0.007874015718698502)
_MAX_STATE = 1 << 16  # bytes of JSON


@dataclass(frozen=True)
class _State:
    """What the JSON of one weight says."""

    shape: tuple[int, ...]
    block: int  # elements
    nested_block: int  # factors; 0 without double quantization
    nested_offset: np.float32


def plain_weights(tensors: Tensors, config: Config, where: Path) -> Tensors:
    """The tensors with each quantized weight replaced by its plain one, computed when read."""
    weights: dict[str, LazyTensor] = {}
    dropped = set()
    for name, tensor in tensors.items():
        if _STATE in name:
            weight = name.partition(_STATE)[0]
            weights[weight] = _four_bits(tensors, weight, tensor)
            dropped |= {name} | {f"{weight}.{key}" for key in _PARTS}
        elif name.endswith(".SCB"):
            weight = name.removesuffix("SCB") + "weight"
            weights[weight] = _eight_bits(tensors, weight, tensor)
            dropped |= {name, name.removesuffix("SCB") + "weight_format"}
    found = {name: weights.get(name, tensor) for name, tensor in tensors.items() if name not in dropped}
    for tensor in found.values():
        if tensor.dtype in ("U8", "I8"):
            raise CheckpointError(tensor.source, "is quantized, but comes without quant_state or SCB")
    return found


def _eight_bits(tensors: Tensors, name: str, largest: LazyTensor) -> LazyTensor:
    weight = part(tensors, name, of=largest)
    check_shape(weight, (largest.n_elements, *weight.shape[1:]), ("I8",))
    form = tensors.get(name + "_format")
    if form is not None and np.any(form.read()):
        raise CheckpointError(form.source, "int8 weights not stored row by row cannot be read")

    def rows(start: int, stop: int) -> Array:
        values = weight.raw(start, stop).astype(np.float32)
        values *= largest.read().reshape(-1)[start:stop, None]
        values *= _ONE_127TH
        return values

    if len(weight.shape) != 2:
        raise CheckpointError(weight.source, f"shape {weight.shape} is not a matrix")
    return computed(weight.shape, weight.source, rows)


def _four_bits(tensors: Tensors, name: str, state_tensor: LazyTensor) -> LazyTensor:
    state = _read_state(state_tensor)
    weight = part(tensors, name, of=state_tensor)
    n_elements = prod(state.shape)
    if weight.n_bytes != -(-n_elements // 2) or weight.flat is None:
        raise CheckpointError(weight.source, f"{weight.n_bytes} bytes do not hold the shape {state.shape}")
    codes = weight.flat
    size = 1 if weight.dtype == "U8" else weight.n_bytes // max(1, codes.n_elements)
    values = part(tensors, f"{name}.quant_map", of=weight)
    check_shape(values, (16,), ("F32",))
    factors = _Factors(tensors, name, state, -(-n_elements // state.block))

    def elements(start: int, stop: int) -> Array:
        first, last = start // 2, -(-stop // 2)
        raw = codes.raw(first // size, -(-last // size)).view(np.uint8)
        raw = raw[first - first // size * size :][: last - first]
        nibbles = np.stack((raw >> 4, raw & 15), axis=-1).reshape(-1)
        nibbles = nibbles[start - 2 * first :][: stop - start]
        low = start // state.block
        result = values.read()[nibbles]
        result *= _spread(factors.read(low, -(-stop // state.block)), state.block, start, stop)
        return result

    return view_of(computed((n_elements,), weight.source, elements), state.shape)


def _spread(factors: Array, block: int, start: int, stop: int) -> Array:
    """The factor of each element start to stop; the first factor is that of the block around `start`."""
    return np.repeat(factors, block)[start % block :][: stop - start]


class _Factors:
    """The factor of each block of a weight, (n_blocks,) float32, read in pieces."""

    def __init__(self, tensors: Tensors, name: str, state: _State, n_blocks: int) -> None:
        self.state = state
        self.absmax = part(tensors, f"{name}.absmax", of=tensors[name])
        check_shape(self.absmax, (n_blocks,), ("U8",) if state.nested_block else ("F32",))
        self.nested: tuple[LazyTensor, LazyTensor] | None = None
        if state.nested_block:
            values = part(tensors, f"{name}.nested_quant_map", of=self.absmax)
            absmax = part(tensors, f"{name}.nested_absmax", of=self.absmax)
            check_shape(values, (256,), ("F32",))
            check_shape(absmax, (-(-n_blocks // state.nested_block),), ("F32",))
            self.nested = (values, absmax)

    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        if self.nested is None:
            return self.absmax.read(start, stop)
        values, absmax = self.nested
        block = self.state.nested_block
        found = values.read()[self.absmax.raw(start, stop)]
        found *= _spread(absmax.read(start // block, -(-stop // block)), block, start, stop)
        found += self.state.nested_offset
        return found


def _read_state(tensor: LazyTensor) -> _State:
    kind = tensor.source.rpartition("__")[2]
    if kind not in _TYPES or tensor.dtype != "U8" or tensor.n_elements > _MAX_STATE:
        raise CheckpointError(tensor.source, f"is not a quant_state of {' or '.join(_TYPES)}")
    try:
        quant_config = json.loads(tensor.raw().tobytes().decode("utf-8"))
        nested = "nested_blocksize" in quant_config
        return _State(
            tuple(_count(n) for n in quant_config["shape"]),
            _count(quant_config["blocksize"]),
            _count(quant_config["nested_blocksize"]) if nested else 0,
            np.float32(float(quant_config["nested_offset"]) if nested else 0.0),
        )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(tensor.source, f"is not a sound quant_state: {error!r}"[:200]) from error


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 48:
        raise ValueError(f"{value!r} is not a count")
    return value
