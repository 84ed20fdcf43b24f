"""A loaded model with some matrices replaced: to measure what one of them is worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from pyllamacpu.errors import ModelError
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.model.codebooks import ensure_codebook
from pyllamacpu.model.weights import Matrix, Table
from pyllamacpu.native import ffi, lib, pointer

Blocks = tuple[TensorType, npt.NDArray[np.uint8]]
Model = TypeVar("Model")


def substituted(model: Model, blocks: Mapping[str, Blocks], pool: Any) -> Model:
    """The same weights, but for those named in `blocks`: a type, and (rows, row bytes) or flat bytes of it.

    What is not replaced is shared with `model`. Raises ModelError when a name is no matrix of the model, or
    the bytes are not as many as it takes.
    """
    left = set(blocks)
    found = _walk(model, blocks, pool, left)
    if left:
        raise ModelError(f"the model has no matrix {min(left)!r} to replace")
    return found


def _walk(part: Any, blocks: Mapping[str, Blocks], pool: Any, left: set[str]) -> Any:
    if isinstance(part, (Matrix, Table)):
        if part.name not in blocks:
            return part
        left.discard(part.name)
        return _replaced(part, *blocks[part.name], pool)
    if isinstance(part, tuple):
        walked = tuple(_walk(item, blocks, pool, left) for item in part)
        return walked if any(a is not b for a, b in zip(walked, part, strict=True)) else part
    if not is_dataclass(part):
        return part
    old = {field.name: getattr(part, field.name) for field in fields(part)}
    new = {name: _walk(value, blocks, pool, left) for name, value in old.items()}
    changed = {name: value for name, value in new.items() if value is not old[name]}
    return replace(part, **changed) if changed and not isinstance(part, type) else part


def _replaced(part: Matrix | Table, kind: TensorType, data: npt.NDArray[np.uint8], pool: Any) -> Any:
    if data.size != part.rows * kind.row_bytes(part.cols):
        raise ModelError(f"{part.name}: {data.size} bytes are no {kind.name} of {part.rows} x {part.cols}")
    ensure_codebook(kind)
    data = np.ascontiguousarray(data).reshape(-1)
    if isinstance(part, Table):
        return Table(part.name, part.rows, part.cols, kind, data)
    handle = lib.pl_matrix_new(pool, ffi.NULL, int(kind), ffi.from_buffer(data), 0, part.rows, part.cols)
    pointer(handle, f"packing {part.name}")
    return Matrix(
        part.name, part.rows, part.cols, kind, ffi.gc(handle, lib.pl_matrix_free, lib.pl_matrix_bytes(handle))
    )
