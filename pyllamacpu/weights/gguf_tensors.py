"""The tensors of a GGUF file as lazy ones.

They are read by offset and not from the mapping: a file that is truncated meanwhile gives an error and not
a signal, and pages that were read do not stay in this process.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllamacpu.gguf.byteswap import swap_tensor
from pyllamacpu.gguf.reader import GGUFFile, TensorInfo
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.model.dequantize import dequantize
from pyllamacpu.weights.data_file import DataFile
from pyllamacpu.weights.lazy_tensor import LazyTensor

_PLAIN = {TensorType.F32: "<f4", TensorType.F16: "<u2", TensorType.BF16: "<u2", TensorType.F64: "<f8"}


def gguf_tensor(file: GGUFFile, info: TensorInfo) -> LazyTensor:
    """The rows of a tensor, matrices of a stack one below the other: (rows, cols), one row of a vector.

    Its dtype is the type's name. `raw` gives plain numbers, or the bytes of the rows' blocks, (rows, bytes)
    uint8. The file may be closed before they are read.
    """
    kind, cols, n_rows = info.type, info.shape[-1], prod(info.shape[:-1])
    row_bytes = kind.row_bytes(cols)
    data, offset, big = DataFile(file.paths[info.part]), info.offset, file.byteorder == "big"

    def stored(start: int, stop: int) -> npt.NDArray[Any]:
        found = data.read(offset + start * row_bytes, (stop - start) * row_bytes)
        typed = (swap_tensor(found, kind) if big else found).view(_PLAIN.get(kind, np.uint8))
        return typed.reshape(stop - start, row_bytes // typed.itemsize)

    def decode(rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        if kind == TensorType.F32:
            return np.asarray(rows, np.float32)
        return dequantize(np.ascontiguousarray(rows).reshape(-1).view(np.uint8), kind, (len(rows), cols))

    return LazyTensor((n_rows, cols), kind.name, f"{data.path}: {info.name}", stored, decode=decode)
