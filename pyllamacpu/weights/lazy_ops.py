"""Tensors made of other tensors, still read row by row.

All of these move stored elements and never change them, so that a copy stays exact; only the scaling ones
compute, in float32. Memory: a read takes its result and at most as much again, except for `cached` and a
`transpose` that moves the first axis, which keep one whole tensor (in its stored type) for as long as it is
being read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np
import numpy.typing as npt

from pyllamacpu.errors import CheckpointError
from pyllamacpu.weights.lazy_tensor import STORED, Array, LazyTensor, computed, turned, view_of
from pyllamacpu.weights.tensor_cache import CachedTensor

_PIECE = 8192  # bytes from which single reads pay


def concatenate(parts: Sequence[LazyTensor], axis: int = 0) -> LazyTensor:
    """The parts one after another along `axis`. Raises CheckpointError when types or other axes differ."""
    first = parts[0]
    if len(parts) == 1:
        return first
    for part in parts[1:]:
        if part.dtype != first.dtype:
            raise CheckpointError(part.source, f"is {part.dtype}, but {first.source} is {first.dtype}")
        if _without(part.shape, axis) != _without(first.shape, axis):
            raise CheckpointError(
                part.source, f"shape {part.shape} does not continue {first.shape} along axis {axis}"
            )
    shape = list(first.shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    if axis == 0:
        return _chained(parts, tuple(shape))

    def stored(start: int, stop: int) -> Array:
        return np.concatenate([part.raw(start, stop) for part in parts], axis)

    return LazyTensor(tuple(shape), first.dtype, first.source, stored, decode=first.decode)


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    if not 0 <= axis < len(shape):
        return shape
    return shape[:axis] + shape[axis + 1 :]


def _chained(parts: Sequence[LazyTensor], shape: tuple[int, ...]) -> LazyTensor:
    """Along the first axis; flat when all parts are, so that it can be reshaped freely."""
    first = parts[0]
    flats = [part.flat for part in parts if part.flat is not None]
    if len(flats) == len(parts) and len(shape) > 1:
        return view_of(_chained(flats, (prod(shape),)), shape)
    ends = np.cumsum([part.n_rows for part in parts])

    def stored(start: int, stop: int) -> Array:
        pieces = []
        for part, end in zip(parts, ends.tolist(), strict=True):
            begin = end - part.n_rows
            low, high = max(start, begin), min(stop, end)
            if low < high:
                pieces.append(part.raw(low - begin, high - begin))
        if not pieces:
            return first.raw(0, 0)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    return LazyTensor(shape, first.dtype, first.source, stored, decode=first.decode)


def stack(parts: Sequence[LazyTensor]) -> LazyTensor:
    """Parts of one shape along a new first axis, as experts are. `reshape` can join the axes again, and
    then rows of the parts are read singly.
    """
    for part in parts[1:]:
        if part.shape != parts[0].shape:
            raise CheckpointError(part.source, f"shape {part.shape} differs from {parts[0].shape}")
    joined = concatenate(parts, 0)
    return reshape(joined, (len(parts), *parts[0].shape))


def reshape(tensor: LazyTensor, shape: Sequence[int]) -> LazyTensor:
    """The elements in the same order with another shape; one length may be -1. Views of files are read in
    exactly the pieces asked for, others in whole rows of the original. Raises CheckpointError.
    """
    dims = _resolved(tensor, shape)
    if dims == tensor.shape:
        return tensor
    return view_of(_flattened(tensor), dims)


def _flattened(tensor: LazyTensor) -> LazyTensor:
    """The elements one after another. Where the tensor is known by its rows only, whole rows are read."""
    if tensor.flat is not None:
        return tensor.flat
    row = prod(tensor.shape[1:])

    def elements(start: int, stop: int) -> Array:
        if start == stop:
            return tensor.raw(0, 0).reshape(-1)
        low = start // row
        values = tensor.raw(low, -(-stop // row)).reshape(-1)
        return values[start - low * row :][: stop - start]

    return LazyTensor((tensor.n_elements,), tensor.dtype, tensor.source, elements, decode=tensor.decode)


def _resolved(tensor: LazyTensor, shape: Sequence[int]) -> tuple[int, ...]:
    known = prod(n for n in shape if n != -1)
    dims = tuple((tensor.n_elements // known if known else 0) if n == -1 else int(n) for n in shape)
    if prod(dims) != tensor.n_elements or list(shape).count(-1) > 1:
        raise CheckpointError(tensor.source, f"shape {tensor.shape} cannot become {tuple(shape)}")
    return dims


def slice_rows(tensor: LazyTensor, start: int, stop: int) -> LazyTensor:
    """Rows [start, stop) of the first axis."""
    if not 0 <= start <= stop <= tensor.n_rows or not tensor.shape:
        raise CheckpointError(tensor.source, f"shape {tensor.shape} has no rows {start} to {stop}")
    shape = (stop - start, *tensor.shape[1:])
    row = prod(tensor.shape[1:])
    flat = tensor.flat
    if flat is not None:
        return view_of(_window(flat, start * row, stop * row), shape)
    return _window(tensor, start, stop)


def _window(tensor: LazyTensor, start: int, stop: int) -> LazyTensor:
    def stored(low: int, high: int) -> Array:
        return tensor.raw(start + low, start + high)

    shape = (stop - start, *tensor.shape[1:])
    return LazyTensor(shape, tensor.dtype, tensor.source, stored, decode=tensor.decode)


def slice_axis(tensor: LazyTensor, axis: int, start: int, stop: int) -> LazyTensor:
    """Elements [start, stop) along `axis`; whole rows are read where that is not the first one."""
    if axis == 0:
        return slice_rows(tensor, start, stop)
    if not 0 < axis < len(tensor.shape) or not 0 <= start <= stop <= tensor.shape[axis]:
        raise CheckpointError(
            tensor.source, f"shape {tensor.shape} has no elements {start} to {stop} on axis {axis}"
        )
    shape = (*tensor.shape[:axis], stop - start, *tensor.shape[axis + 1 :])
    inner = prod(tensor.shape[axis + 1 :])
    if tensor.flat is not None and (stop - start) * inner * STORED[tensor.dtype].itemsize >= _PIECE:
        return _pieces(tensor.flat, tensor.shape, axis, start * inner, shape)
    picked = (slice(None),) * axis + (slice(start, stop),)

    def stored(low: int, high: int) -> Array:
        return np.ascontiguousarray(tensor.raw(low, high)[picked])

    return LazyTensor(shape, tensor.dtype, tensor.source, stored, decode=tensor.decode)


def _pieces(
    flat: LazyTensor, whole: tuple[int, ...], axis: int, first: int, shape: tuple[int, ...]
) -> LazyTensor:
    """The slice `shape` of a file's tensor `whole`, read in runs that begin `first` elements into the axis:
    what lies between is not read.
    """
    run, step = prod(shape[axis:]), prod(whole[axis:])
    runs = prod(shape[1:axis])  # per row

    def stored(low: int, high: int) -> Array:
        result = np.empty(((high - low) * runs, run), STORED[flat.dtype])
        for index in range(result.shape[0]):
            begin = (low * runs + index) * step + first
            result[index] = flat.raw(begin, begin + run)
        return result.reshape(high - low, *shape[1:])

    return LazyTensor(shape, flat.dtype, flat.source, stored, decode=flat.decode)


def select(tensor: LazyTensor, index: int) -> LazyTensor:
    """Row `index` alone, without the first axis: one expert of (n_experts, n_out, n_in)."""
    return reshape(slice_rows(tensor, index, index + 1), tensor.shape[1:])


def take_rows(tensor: LazyTensor, index: npt.ArrayLike) -> LazyTensor:
    """Row i is row index[i] of `tensor`. Fastest where neighbours stay near each other, as in the q and k
    permutation of rope, which moves rows within a head.
    """
    order = np.asarray(index, np.int64)
    if order.ndim != 1 or (order.size and not 0 <= int(order.min()) <= int(order.max()) < tensor.n_rows):
        raise CheckpointError(tensor.source, f"rows outside 0 to {tensor.n_rows - 1} are asked for")

    def stored(start: int, stop: int) -> Array:
        wanted = order[start:stop]
        if not wanted.size:
            return tensor.raw(0, 0)
        low, high = int(wanted.min()), int(wanted.max()) + 1
        if high - low <= 4 * wanted.size:
            return tensor.raw(low, high)[wanted - low]
        return np.concatenate([tensor.raw(a, b) for a, b in _runs(wanted)])

    shape = (order.size, *tensor.shape[1:])
    return LazyTensor(shape, tensor.dtype, tensor.source, stored, decode=tensor.decode)


def _runs(index: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Half-open ranges of successive rows that together are `index`."""
    breaks = np.flatnonzero(np.diff(index) != 1) + 1
    starts = index[np.concatenate(([0], breaks))]
    ends = index[np.concatenate((breaks - 1, [index.size - 1]))] + 1
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def transpose(tensor: LazyTensor, axes: Sequence[int] | None = None) -> LazyTensor:
    """The axes in another order, reversed by default. What is turned is held in memory while it is being
    read: the whole tensor, or one expert where the first axis stays first.
    """
    order = tuple(reversed(range(len(tensor.shape)))) if axes is None else tuple(axes)
    if sorted(order) != list(range(len(tensor.shape))):
        raise CheckpointError(tensor.source, f"axes {order} do not fit the shape {tensor.shape}")
    shape = tuple(tensor.shape[axis] for axis in order)
    if order == tuple(range(len(order))):
        return tensor
    if order == (0, 2, 1) and shape[0]:  # experts: their rows can be read singly, one expert held
        return stack([transpose(select(tensor, index)) for index in range(shape[0])])
    if order[0] == 0:

        def stored(start: int, stop: int) -> Array:
            return turned(tensor.raw(start, stop).transpose(order))
    else:
        whole = CachedTensor(tensor)

        def stored(start: int, stop: int) -> Array:
            return turned(whole.array(last=stop == shape[0]).transpose(order)[start:stop])

    return LazyTensor(shape, tensor.dtype, tensor.source, stored, decode=tensor.decode)


def cached(tensor: LazyTensor) -> LazyTensor:
    """The same tensor, kept in memory while it is being read: for what many small reads share."""
    whole = CachedTensor(tensor)

    def stored(start: int, stop: int) -> Array:
        return whole.array()[start:stop]

    return LazyTensor(tensor.shape, tensor.dtype, tensor.source, stored, decode=tensor.decode)


def map_rows(tensor: LazyTensor, function: Callable[[Array], Array]) -> LazyTensor:
    """float32 values changed by a function of whole rows that keeps their shape (slabs of any height)."""
    return computed(tensor.shape, tensor.source, lambda a, b: function(tensor.read(a, b)))


def scale_rows(tensor: LazyTensor, scales: LazyTensor) -> LazyTensor:
    """Each row times its scale, in float32. `scales` has one element per row, or one for all."""
    per_row = reshape(scales, (-1,))
    if per_row.n_rows not in (1, tensor.n_rows):
        raise CheckpointError(
            scales.source, f"{per_row.n_rows} scales do not fit the {tensor.n_rows} rows of {tensor.source}"
        )
    single = per_row.n_rows == 1

    def rows(start: int, stop: int) -> Array:
        factor = per_row.read(0, 1) if single else per_row.read(start, stop)
        return _float32(tensor.read(start, stop)) * factor.reshape(-1, *(1,) * (len(tensor.shape) - 1))

    return computed(tensor.shape, tensor.source, rows)


def scale_blocks(tensor: LazyTensor, scales: LazyTensor, block: tuple[int, int]) -> LazyTensor:
    """A matrix (n_out, n_in) whose blocks of `block` elements have a scale each, in float32: `scales` is
    (ceil(n_out / block[0]), ceil(n_in / block[1])).
    """
    height, width = block
    needed = tuple(-(-n // size) for n, size in zip(tensor.shape, block, strict=True))
    if scales.shape != needed:
        raise CheckpointError(
            scales.source,
            f"shape {scales.shape} does not fit {tensor.shape} in blocks of {height} x {width}; "
            f"it should be {needed}",
        )

    def rows(start: int, stop: int) -> Array:
        first = start // height
        grid = scales.read(first, -(-stop // height))
        wide = np.repeat(grid, width, axis=1)[:, : tensor.shape[1]]
        scaled: Array = _float32(tensor.read(start, stop)) * wide[np.arange(start, stop) // height - first]
        return scaled

    return computed(tensor.shape, tensor.source, rows)


def _float32(values: Array) -> npt.NDArray[np.float32]:
    return values.astype(np.float32, copy=False)
