"""Tensors on their way into a file: slabs of rows, read and encoded by all threads, written in order.

Only a few slabs are in memory at a time, so a checkpoint larger than memory is no different from a small one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from pyllamacpu.errors import CheckpointError, ModelError
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.native import cpus_usable
from pyllamacpu.weights.blocks import quantize
from pyllamacpu.weights.lazy_ops import reshape
from pyllamacpu.weights.lazy_tensor import LazyTensor

SLAB = 1 << 20  # elements that a thread takes at once: 4 MB as float32
BUDGET = 96 << 20  # bytes for all slabs in flight, besides one times the largest tensor
_COPIES = 16  # bytes per element of a slab while it is worked on: stored, float32, intermediate ones, encoded
_MAX_F16 = 65504.0

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Item:
    """One tensor of the result and where it comes from."""

    name: str
    tensor: LazyTensor
    kind: TensorType

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape or (1,)

    @property
    def n_bytes(self) -> int:
        """In the result."""
        return prod(self.shape[:-1]) * self.kind.row_bytes(self.shape[-1])


@dataclass(frozen=True)
class Slab:
    """Encoded rows of one tensor, in their order."""

    item: Item
    data: Bytes
    ended: bool  # whether these were the last


@dataclass(frozen=True)
class _Job:
    item: Item
    rows: LazyTensor
    start: int
    stop: int


def encode_all(items: Iterable[Item], threads: int | None = None) -> Iterator[Slab]:
    """All slabs of all tensors, in order. Raises CheckpointError for weights that are NaN or infinite, or
    that the type cannot hold, naming tensor and row.
    """
    wanted = list(items)
    n_threads = _thread_count(wanted, threads or cpus_usable())
    with ThreadPoolExecutor(n_threads, thread_name_prefix="convert") as pool:
        pending: deque[tuple[_Job, Future[Bytes]]] = deque()
        try:
            for job in _jobs(wanted):
                pending.append((job, pool.submit(_encode, job)))
                if len(pending) > n_threads:
                    yield _done(*pending.popleft())
            while pending:
                yield _done(*pending.popleft())
        finally:
            for _, future in pending:
                future.cancel()


def _done(job: _Job, future: Future[Bytes]) -> Slab:
    return Slab(job.item, future.result(), job.stop == job.rows.n_rows)


def _thread_count(items: list[Item], wanted: int) -> int:
    """Fewer threads where single rows are large (an expert that is transposed is one row)."""
    largest = max((_stored_bytes(item) for item in items), default=0)
    slab = max((max(SLAB, prod(_rows(item.tensor).shape[1:])) for item in items), default=1)
    return max(1, min(wanted, (BUDGET + largest // 2) // (slab * _COPIES)))


def _stored_bytes(item: Item) -> int:
    return item.tensor.n_elements * 2


def _rows(tensor: LazyTensor) -> LazyTensor:
    """Matrices of a stack one below the other, where that needs no more reading."""
    if len(tensor.shape) > 2 and tensor.flat is not None:
        return reshape(tensor, (-1, tensor.shape[-1]))
    return tensor


def _jobs(items: Iterable[Item]) -> Iterator[_Job]:
    for item in items:
        rows = _rows(item.tensor)
        step = max(1, SLAB // max(1, prod(rows.shape[1:])))
        for start in range(0, rows.n_rows, step):
            yield _Job(item, rows, start, min(start + step, rows.n_rows))


def _encode(job: _Job) -> Bytes:
    """The job's rows in their new type, flat uint8."""
    item, rows = job.item, job.rows
    if rows.dtype == item.kind.name and (rows.decode is None or item.kind.block_size > 1):
        stored = rows.raw(job.start, job.stop)
        _check_stored(job, stored)
        return np.ascontiguousarray(stored).reshape(-1).view(np.uint8)
    values = rows.read(job.start, job.stop)
    if values.dtype != np.float32:
        raise CheckpointError(rows.source, f"holds {rows.dtype}, not weights")
    if not np.isfinite(values.sum(dtype=np.float64)):
        _refuse(job, values)
    if item.kind == TensorType.F32:
        return np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    if item.kind == TensorType.F16:
        _check_half(job, values)
    try:
        return quantize(values.reshape(-1, item.shape[-1]), item.kind, threads=1).reshape(-1)
    except ModelError:
        _refuse(job, values)
        raise


def _check_stored(job: _Job, stored: npt.NDArray[np.generic]) -> None:
    """Raises CheckpointError when stored numbers are not finite; their exponent's bits are all ones."""
    if job.item.kind in (TensorType.BF16, TensorType.F16):
        limit = 0x7F80 if job.item.kind == TensorType.BF16 else 0x7C00
        wrong = stored.size and int((stored & np.uint16(0x7FFF)).max()) >= limit
    elif job.item.kind == TensorType.F32:
        wrong = not np.isfinite(stored.sum(dtype=np.float64))
    else:
        return  # blocks of a file that is copied
    if wrong:
        _refuse(job, job.rows.read(job.start, job.stop))


def _check_half(job: _Job, values: npt.NDArray[np.float32]) -> None:
    if values.size and max(float(values.max()), -float(values.min())) >= _MAX_F16 + 16:
        row, value = _first(values, np.abs(values) >= _MAX_F16 + 16)
        raise CheckpointError(
            job.rows.source,
            f"row {job.start + row} holds {value:g}, beyond what F16 can hold ({_MAX_F16:g}); convert with "
            "--outtype bf16 or f32",
        )


def _refuse(job: _Job, values: npt.NDArray[np.float32]) -> None:
    """Raises CheckpointError when a value is not finite."""
    wrong = ~np.isfinite(values)
    if wrong.any():
        row, value = _first(values, wrong)
        raise CheckpointError(
            job.rows.source,
            f"({job.item.name}) row {job.start + row} holds {value}: the weights are damaged; get the "
            f"file again",
        )


def _first(values: npt.NDArray[np.float32], marked: npt.NDArray[np.bool_]) -> tuple[int, float]:
    """Row and value of the first marked element."""
    at = np.unravel_index(int(np.argmax(marked)), values.shape)
    return int(at[0]) if at else 0, float(values[at])
