"""The tensors of a GGUF file as lazy ones."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllamacpu.gguf.reader import GGUFFile, TensorInfo
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.model.dequantize import dequantize
from pyllamacpu.weights.lazy_tensor import LazyTensor
from pyllamacpu.weights.tensor_cache import CachedTensor

_PLAIN = {TensorType.F32: "<f4", TensorType.F16: "<u2", TensorType.BF16: "<u2", TensorType.F64: "<f8"}


def gguf_tensor(file: GGUFFile, info: TensorInfo) -> LazyTensor:
    """The rows of a tensor, matrices of a stack one below the other: (rows, cols), one row of a vector.

    Its dtype is the type's name. `raw` gives plain numbers, or the bytes of the rows' blocks, (rows, bytes)
    uint8: views of the mapped file, whose pages `release` drops. The file has to stay open.
    """
    kind, cols, n_rows = info.type, info.shape[-1], prod(info.shape[:-1])
    row_bytes = kind.row_bytes(cols)
    source = f"{file.paths[min(info.part, len(file.paths) - 1)]}: {info.name}"
    whole = LazyTensor((info.n_bytes,), "U8", source, lambda start, stop: file.data(info.name)[start:stop])
    swapped = CachedTensor(whole) if file.byteorder == "big" else None  # which the reader copies whole

    def stored(start: int, stop: int) -> npt.NDArray[Any]:
        wanted = slice(start * row_bytes, stop * row_bytes)
        data = swapped.array(last=stop == n_rows)[wanted] if swapped else file.data(info.name)[wanted]
        typed = data.view(_PLAIN.get(kind, np.uint8))
        return typed.reshape(stop - start, row_bytes // typed.itemsize)

    def decode(rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        if kind == TensorType.F32:
            return np.asarray(rows, np.float32)
        return dequantize(np.ascontiguousarray(rows).reshape(-1).view(np.uint8), kind, (len(rows), cols))

    def release(start: int, stop: int) -> None:
        file.release(info.name, start * row_bytes, stop * row_bytes)

    return LazyTensor((n_rows, cols), kind.name, source, stored, decode=decode, release=release)
