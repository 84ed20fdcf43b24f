"""Matrices of floats to blocks of any tensor type, with all threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllamacpu.errors import ModelError, OptionError
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.limits import cpus_usable
from pyllamacpu.model.codebooks import ensure_codebook
from pyllamacpu.native import check, ffi, lib
from pyllamacpu.weights.lazy_tensor import decode

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

SLAB = 1 << 18  # elements that a thread takes at once: some milliseconds of work
READABLE = {
    TensorType.F32: np.dtype("<f4"),
    TensorType.F16: np.dtype("<u2"),
    TensorType.BF16: np.dtype("<u2"),
}
"""Float types that `quantize` takes as they are stored, and what holds their bits."""


def can_quantize(kind: TensorType) -> bool:
    """Whether `quantize` can write `kind`."""
    return int(lib.pl_quantize_known(kind)) > 0


def needs_importance(kind: TensorType) -> bool:
    """Whether `quantize` refuses `kind` without importance weights."""
    return int(lib.pl_quantize_known(kind)) == 2


def quantize(
    array: npt.NDArray[Any],
    kind: TensorType,
    importance: Floats | None = None,
    threads: int | None = None,
    stored: TensorType = TensorType.F32,
) -> Bytes:
    """Rows of blocks of `kind` that approximate `array`.

    `array`: (rows, cols) finite float32, or the bits of the type `stored` (a key of READABLE).
    `importance`: (cols,) float32, at least 0: how much an error in each column counts (mean squares of the
    activations that meet it). `threads`: all usable CPUs when None; the result does not depend on it.
    Returns (rows, bytes of a row) uint8. Values beyond what `kind` can hold become the largest that it
    holds.
    Raises OptionError for a type that cannot be written, rows that are not whole blocks, or importance that
    is missing, of another length or negative; ModelError for NaN or inf in `array`, naming the row.
    """
    source, weights = _checked(array, kind, importance, stored)
    rows, cols = source.shape
    out = np.empty((rows, kind.row_bytes(cols)), np.uint8)
    step = max(1, SLAB // max(cols, 1))
    slabs = [slice(row, min(row + step, rows)) for row in range(0, rows, step)]
    n_threads = min(threads or cpus_usable(), len(slabs))

    def work(slab: slice) -> None:
        _quantize_slab(source, stored, kind, weights, slab, out)

    if n_threads <= 1:
        for slab in slabs:
            work(slab)
    else:
        for _ in _pool(n_threads).map(work, slabs):
            pass
    return out


@lru_cache(maxsize=4)
def _pool(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads, thread_name_prefix="quantize")


def _checked(
    array: npt.NDArray[Any], kind: TensorType, importance: Floats | None, stored: TensorType
) -> tuple[npt.NDArray[Any], Floats | None]:
    if not can_quantize(kind):
        raise OptionError(f"tensors cannot be written as {kind.name}; choose another type")
    wanted = READABLE[stored]
    if array.ndim != 2 or array.dtype != wanted:
        raise OptionError(f"a {wanted} matrix is wanted, not {array.dtype} of shape {array.shape}")
    if needs_importance(kind) and importance is None:
        raise OptionError(f"{kind.name} needs an importance matrix: it is useless without (give --imatrix)")
    if importance is not None:
        if importance.shape != array.shape[1:]:
            shape = f"shape {importance.shape} for rows of {array.shape[1]}"
            raise OptionError(f"importance has {shape}: it belongs to another tensor")
        importance = np.ascontiguousarray(importance, np.float32)
        if not (np.isfinite(importance) & (importance >= 0)).all():
            raise OptionError("importance must be finite and at least 0; the importance matrix is damaged")
    kind.row_bytes(array.shape[1])  # raises when rows are not whole blocks
    ensure_codebook(kind)
    return np.ascontiguousarray(array), importance


def _quantize_slab(
    source: npt.NDArray[Any],
    stored: TensorType,
    kind: TensorType,
    weights: Floats | None,
    slab: slice,
    out: Bytes,
) -> None:
    part, target = source[slab], out[slab]
    if not part.size:
        return
    importance = ffi.NULL if weights is None else ffi.from_buffer("float[]", weights)
    rc = lib.pl_quantize(
        kind, stored, ffi.from_buffer(part), *part.shape, importance, ffi.from_buffer(target)
    )
    if rc == lib.PL_QUANTIZE_ENAN:
        values = decode(part, stored.name)
        row, column = np.argwhere(~np.isfinite(values))[0]
        value = values[row, column]
        raise ModelError(f"row {slab.start + row}, column {column} is {value}: damaged weights")
    check(rc, f"quantizing to {kind.name}")
