"""A loaded model with some matrices replaced: to measure what one of them is worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllamacpu.errors import ModelError
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.model.codebooks import ensure_codebook
from pyllamacpu.model.weights import Experts, Matrix, Table, Vector, Weights
from pyllamacpu.native import ffi, lib, pointer

Blocks = tuple[TensorType, npt.NDArray[np.uint8]]


def override_weights(weights: Weights, blocks: Mapping[str, Blocks], pool: Any) -> Weights:
    """The same weights, but for those named in `blocks` by their tensor's name in the file: a type, and
    (rows, row bytes) or flat bytes of it.

    What is not replaced is shared with `weights`. Raises ModelError when a name is not a matrix of the model,
    or the bytes are not as many as it takes.
    """
    found = dict(weights)
    replaced = set()
    for name, weight in weights.items():
        if weight.name in blocks and not isinstance(weight, Vector):
            found[name] = _replaced(weight, *blocks[weight.name], pool)
            replaced.add(weight.name)
    if left := set(blocks) - replaced:
        raise ModelError(f"the model has no matrix {min(left)!r} to replace")
    return Weights(found)


def _replaced(
    part: Matrix | Experts | Table, kind: TensorType, data: npt.NDArray[np.uint8], pool: Any
) -> Any:
    n, one = (len(part), part.matrices[0]) if isinstance(part, Experts) else (1, part)
    if data.size != n * one.rows * kind.row_bytes(one.cols):
        count = f"{n} x " if n > 1 else ""
        raise ModelError(
            f"{part.name}: {data.size} bytes are no {kind.name} of {count}{one.rows} x {one.cols}"
        )
    ensure_codebook(kind)
    data = np.ascontiguousarray(data).reshape(n, -1)
    if isinstance(part, Table):
        return Table(part.name, part.rows, part.cols, kind, data[0])
    if isinstance(part, Experts):
        return Experts(part.name, tuple(_packed(part[0], kind, rows, pool) for rows in data))
    return _packed(part, kind, data[0], pool)


def _packed(like: Matrix, kind: TensorType, data: npt.NDArray[np.uint8], pool: Any) -> Matrix:
    handle = lib.pl_matrix_new(pool, ffi.NULL, int(kind), ffi.from_buffer(data), 0, like.rows, like.cols)
    pointer(handle, f"packing {like.name}")
    return Matrix(
        like.name, like.rows, like.cols, kind, ffi.gc(handle, lib.pl_matrix_free, lib.pl_matrix_bytes(handle))
    )
