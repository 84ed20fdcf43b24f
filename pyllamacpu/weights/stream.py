"""Tensors on their way into a file: slabs of rows, read and encoded by all threads, given out in order.

Only a few slabs are in memory at a time, so a model larger than memory is no different from a small one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllamacpu.errors import CheckpointError, ModelError
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.limits import cpus_usable
from pyllamacpu.units import exact
from pyllamacpu.weights.blocks import READABLE, quantize
from pyllamacpu.weights.finite import saturated, stored_finite
from pyllamacpu.weights.lazy_ops import reshape
from pyllamacpu.weights.lazy_tensor import LazyTensor, decode

SLAB = 1 << 20  # elements that a thread takes at once, at most: 4 MB as float32
_SMALLEST_SLAB = 1 << 18
BUDGET = 96 << 20  # bytes for all slabs in flight, besides one times the largest tensor
_COPIES = 16  # bytes per element of a slab while it is worked on: stored, float32, intermediate ones, encoded
_MAX_F16 = 65504.0
_OVERFLOWS_F16 = _MAX_F16 + 16  # from here on the nearest 16-bit float is infinite

_READABLE = {kind.name: kind for kind in READABLE}
_PLAIN = (TensorType.F32, TensorType.F16)  # values are looked at before they are written

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class OutputTensor:
    """One tensor of the result: its name and type, and where its values come from.

    `dims` is its shape where `tensor` has its rows one below the other. `importance()` gives (matrices, cols)
    float32: how much an error in each column counts, or None.
    """

    name: str
    tensor: LazyTensor
    kind: TensorType
    dims: tuple[int, ...] = ()
    importance: Callable[[], Floats | None] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.dims or self.tensor.shape or (1,)

    @property
    def n_elements(self) -> int:
        return prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """In the result."""
        return prod(self.shape[:-1]) * self.kind.row_bytes(self.shape[-1])


@dataclass(frozen=True, eq=False)
class Slab:
    """Encoded rows of one tensor, in their order. `index` counts tensors from 0; `ended`: the last of one."""

    tensor: OutputTensor
    index: int
    data: Bytes
    ended: bool


@dataclass(frozen=True, eq=False)
class _Job:
    """Rows `start` to `stop`, of one matrix where there is importance, (cols,) float32."""

    tensor: OutputTensor
    index: int
    rows: LazyTensor
    start: int
    stop: int
    importance: Floats | None

    def encode(self) -> Bytes:
        return _encode(self)


def encode_all(tensors: Iterable[OutputTensor], threads: int | None = None) -> Iterator[Slab]:
    """All slabs of all tensors, in order. Raises CheckpointError for weights that are NaN or infinite, or
    that the type cannot hold, naming tensor, row and column.
    """
    wanted = list(tensors)
    slab = _slab_elements(threads or cpus_usable())
    n_threads = _thread_count(wanted, slab, threads or cpus_usable())
    with ThreadPoolExecutor(n_threads, thread_name_prefix="weights") as pool:
        pending: deque[tuple[_Job, Future[Bytes]]] = deque()
        try:
            for job in _jobs(wanted, slab):
                pending.append((job, pool.submit(job.encode)))
                if len(pending) >= 2 * n_threads:
                    yield _done(*pending.popleft())
            while pending:
                yield _done(*pending.popleft())
        finally:
            for _, future in pending:
                future.cancel()


def _done(job: _Job, future: Future[Bytes]) -> Slab:
    return Slab(job.tensor, job.index, future.result(), job.stop == job.rows.n_rows)


def _slab_elements(n_threads: int) -> int:
    """Smaller slabs where many threads share the budget."""
    return min(SLAB, max(_SMALLEST_SLAB, BUDGET // (_COPIES * n_threads)))


def _thread_count(tensors: list[OutputTensor], slab: int, wanted: int) -> int:
    """Fewer threads where single rows are large (an expert that is transposed is one row)."""
    largest = max((2 * tensor.n_elements for tensor in tensors), default=0)  # bytes, as 16-bit floats
    slab = max((max(slab, prod(_rows(tensor.tensor).shape[1:])) for tensor in tensors), default=1)
    return max(1, min(wanted, (BUDGET + largest // 2) // (slab * _COPIES)))


def _rows(tensor: LazyTensor) -> LazyTensor:
    """Matrices of a stack one below the other, where that needs no more reading."""
    if len(tensor.shape) > 2 and tensor.flat is not None:
        return reshape(tensor, (-1, tensor.shape[-1]))
    return tensor


def _jobs(tensors: Iterable[OutputTensor], slab: int) -> Iterator[_Job]:
    for index, tensor in enumerate(tensors):
        rows = _rows(tensor.tensor)
        importance = tensor.importance() if tensor.importance else None
        n_matrices = 1 if importance is None else len(importance)
        per_matrix = rows.n_rows // n_matrices
        step = max(1, slab // max(1, prod(rows.shape[1:])))
        for matrix in range(n_matrices):
            weights = None if importance is None else importance[matrix]
            begin, end = matrix * per_matrix, (matrix + 1) * per_matrix
            for start in range(begin, end, step):
                yield _Job(tensor, index, rows, start, min(start + step, end), weights)


def _encode(job: _Job) -> Bytes:
    """The job's rows in their new type, flat uint8."""
    rows, kind = job.rows, job.tensor.kind
    if rows.dtype == kind.name:
        stored = rows.raw(job.start, job.stop)
        if not _finite(job, stored):
            _refuse(job, rows.read(job.start, job.stop))
        return _flat(stored)
    source = _READABLE.get(rows.dtype)
    if source and kind not in _PLAIN:  # as they are stored: the kernels read them
        return _quantized(job, rows.raw(job.start, job.stop), source)
    values = rows.read(job.start, job.stop)
    if values.dtype != np.float32:
        raise CheckpointError(rows.source, f"holds {rows.dtype}, not weights")
    if kind == TensorType.F32:
        if not stored_finite(values, kind):
            _refuse(job, values)
        return _flat(values)
    if kind == TensorType.F16:
        _check_half(job, values)
    return _quantized(job, values, TensorType.F32)


def _quantized(job: _Job, stored: npt.NDArray[Any], source: TensorType) -> Bytes:
    """Blocks of elements of `source`."""
    kind, matrix = job.tensor.kind, stored.reshape(-1, job.tensor.shape[-1])
    try:
        found = _flat(quantize(matrix, kind, job.importance, threads=1, stored=source))
    except ModelError:
        _refuse(job, decode(stored, source.name))
        raise
    if saturated(found, kind):  # a look at a few bytes of each block
        _check_scales(job, decode(stored, source.name))
    return found


def _flat(array: npt.NDArray[Any]) -> Bytes:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _finite(job: _Job, stored: npt.NDArray[Any]) -> bool:
    """Whether weights that are copied are finite; true for a type that cannot be decoded."""
    found = stored_finite(stored, job.tensor.kind)
    if found is not None:
        return found
    try:
        return bool(np.isfinite(job.rows.read(job.start, job.stop)).all())
    except ModelError:
        return True


def _check_half(job: _Job, values: Floats) -> None:
    if values.size and max(float(values.max()), -float(values.min())) >= _OVERFLOWS_F16:
        too_large = np.isfinite(values) & (np.abs(values) >= _OVERFLOWS_F16)
        _refuse_where(too_large, job, values, f"F16 ends at {exact(_MAX_F16)}; choose BF16 or F32")


def _check_scales(job: _Job, values: Floats) -> None:
    """Raises CheckpointError where values are too large for the 16-bit scales of a block."""
    kind = job.tensor.kind
    largest = max(float(values.max()), -float(values.min())) if values.size else 0.0
    if largest >= _MAX_F16:
        reason = f"the scales of {kind.name} end at {exact(_MAX_F16)}; choose BF16 or F32"
        _refuse_where(np.abs(values) == np.float32(largest), job, values, reason)


def _refuse(job: _Job, values: Floats) -> None:
    """Raises CheckpointError when a value is not finite."""
    _refuse_where(~np.isfinite(values), job, values, "the weights are damaged; get the file again")


def _refuse_where(wrong: npt.NDArray[np.bool_], job: _Job, values: Floats, reason: str) -> None:
    if not wrong.any():
        return
    at = np.unravel_index(int(np.argmax(wrong)), values.shape)
    row, column = (int(at[0]) if len(at) > 1 else 0), int(at[-1])
    source = job.rows.source
    where = source if source.endswith(job.tensor.name) else f"{source} ({job.tensor.name})"
    raise CheckpointError(where, f"row {job.start + row}, column {column} holds {values[at]}: {reason}")
