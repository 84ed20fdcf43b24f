"""Whole tensors kept in memory for a while, within one budget for the process."""

from __future__ import annotations

from collections import OrderedDict

from pyllamacpu.forks import fork_safe_lock
from pyllamacpu.weights.lazy_tensor import Array, LazyTensor

BUDGET = 128 << 20  # bytes, of all but the largest one


class CachedTensor:
    """The stored elements of a tensor, read at the first use and dropped when others need the room."""

    def __init__(self, tensor: LazyTensor) -> None:
        self.tensor = tensor
        self.lock = fork_safe_lock()

    def array(self, last: bool = False) -> Array:
        """The elements, with the tensor's shape. `last` says that they will hardly be asked for again."""
        array = _recall(self)
        if array is None:
            with self.lock:  # several threads wait for one reader
                array = _recall(self)
                if array is None:
                    _make_room(self.tensor.n_bytes)
                    array = self.tensor.raw()
                    if not last:
                        _keep(self, array)
        elif last:
            _drop(self)
        return array


_arrays: OrderedDict[CachedTensor, Array] = OrderedDict()  # least recently used first
_lock = fork_safe_lock()


def _recall(tensor: CachedTensor) -> Array | None:
    with _lock:
        array = _arrays.get(tensor)
        if array is not None:
            _arrays.move_to_end(tensor)
        return array


def _make_room(n_bytes: int) -> None:
    """Drops the least recently used until `n_bytes` more fit the budget: what one layer needs (a large
    tensor and its small companions) stays together.
    """
    with _lock:
        sizes = [array.nbytes for array in _arrays.values()] + [n_bytes]
        while _arrays and sum(sizes) - max(sizes) > BUDGET:
            sizes.remove(_arrays.popitem(last=False)[1].nbytes)


def _keep(tensor: CachedTensor, array: Array) -> None:
    with _lock:
        _arrays[tensor] = array


def _drop(tensor: CachedTensor) -> None:
    with _lock:
        _arrays.pop(tensor, None)


def release_all() -> None:
    """Drops every cached tensor."""
    with _lock:
        _arrays.clear()
