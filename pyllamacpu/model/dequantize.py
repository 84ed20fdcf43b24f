"""Tensors of any type that GGUF files of the Llama family use, as float32 arrays."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import numpy.typing as npt

from pyllamacpu.errors import ModelError
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.model.codebooks import ensure_codebook
from pyllamacpu.native import check, ffi, lib


def dequantize(data: npt.NDArray[np.uint8], kind: int, shape: Sequence[int]) -> npt.NDArray[np.float32]:
    """The values of a tensor, bit for bit as the `gguf` package computes them.

    `data`: the tensor's bytes, uint8, rows one after another. `kind`: a TensorType or its number. `shape`:
    elements, the row length last (the reverse of the order in the file). Returns float32 of that shape.
    Raises ModelError for a type not decoded, rows that are not whole blocks, or bytes that do not fit it.
    """
    known = _decodable(kind)
    dims = tuple(int(n) for n in shape)
    _check_size(data, known, dims)
    ensure_codebook(known)
    values = np.empty(dims, dtype=np.float32)
    source = np.ascontiguousarray(data)
    rc = lib.pl_dequantize(known, ffi.from_buffer(source), ffi.from_buffer("float[]", values), values.size)
    check(rc, f"dequantizing {known.name}")
    return values


def _decodable(kind: int) -> TensorType:
    if kind in set(TensorType) and lib.pl_type_block_elements(kind) > 0:
        return TensorType(kind)
    name = TensorType(kind).name if kind in set(TensorType) else f"number {kind}"
    raise ModelError(f"tensors of type {name} cannot be decoded; use a model of another quantization")


def _check_size(data: npt.NDArray[np.uint8], kind: TensorType, dims: tuple[int, ...]) -> None:
    row = dims[-1] if dims else 1
    if min(dims, default=1) < 0 or row % kind.block_size:
        raise ModelError(f"shape {dims} cannot be {kind.name}: its rows are multiples of {kind.block_size}")
    if data.dtype != np.uint8:
        raise ModelError(f"the bytes of a {kind.name} tensor must be given as uint8, not {data.dtype}")
    expected = prod(dims) // kind.block_size * kind.block_bytes
    if data.size != expected:
        raise ModelError(f"a {kind.name} tensor of shape {dims} takes {expected} bytes, not {data.size}")
