"""What the engines of this process hold, so that another one is refused before memory runs out."""

from __future__ import annotations

import gc
import os
from bisect import bisect_right
from collections.abc import Iterable
from typing import Protocol
from weakref import WeakSet

from pyllamacpu.engine.pages import PAGE, KVCache
from pyllamacpu.engine.weight_bytes import experts_in_file, weight_file_bytes
from pyllamacpu.errors import AdapterError, ContextError, ModelError
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.limits import memory_usable
from pyllamacpu.model.config import ModelConfig

_ROOM = 0.9  # of memory for weights, when a smaller type is proposed
_CONTEXT = 8192  # tokens, for which there shall be room when experts are to stay in the file


class Holder(Protocol):
    """Something that holds memory."""

    @property
    def held_bytes(self) -> int: ...


_holders: WeakSet[Holder] = WeakSet()


def holds(holder: Holder) -> None:
    """From now on it counts, until it `holds_no_more` or nobody has it."""
    _holders.add(holder)


def holds_no_more(holder: Holder) -> None:
    _holders.discard(holder)


def held_bytes() -> int:
    """Of weights, and keys and values."""
    return sum(holder.held_bytes for holder in list(_holders))


def memory_left(wanted: int) -> int | None:
    """Bytes that this process may still use, beside what its engines hold; None where it cannot be told.
    wanted: bytes for which it is worth looking for engines that nobody has any more.
    """
    memory = memory_usable()
    if not memory:
        return None
    if wanted > memory - held_bytes():
        gc.collect()
    return max(0, memory - held_bytes())


def check_memory(
    file: GGUFFile,
    config: ModelConfig,
    n_ctx: int,
    cache: KVCache,
    n_batch: int,
    expert_memory: int | None = None,
) -> None:
    """Refuses a model, or a context, that is larger than the memory this process may use, before anything is
    loaded. Raises ModelError, ContextError.
    """
    weights = weight_file_bytes(file, config, expert_memory)
    needed = cache.context_bytes(n_ctx, n_batch)
    memory = memory_left(weights + needed)
    if memory is None:
        return
    have = f"this process may use {memory / 1e9:.1f} GB"
    have += " beside the models that it has loaded" if held_bytes() else ""
    if weights > memory:
        context = cache.context_bytes(min(n_ctx, _CONTEXT), n_batch)
        ways = [experts_in_file(file, config, memory - context), _smaller(file, memory)]
        raise ModelError(
            f"{file.paths[0]}: its weights take {weights / 1e9:.1f} GB, and {have}; "
            + ", or ".join(filter(None, ways))
        )
    if weights + needed > memory:
        pages = range(-(-n_ctx // PAGE))
        fits = PAGE * bisect_right(
            pages, memory - weights, key=lambda n: cache.context_bytes(PAGE * n, n_batch)
        )
        fits = max(0, fits - PAGE)
        raise ContextError(
            f"a context of {n_ctx} needs {needed / 1e9:.1f} GB for keys and values beside "
            f"{weights / 1e9:.1f} GB of weights, and {have}; "
            f"ask for at most {fits} (-c), or a smaller cache type (-ctk q8_0 -ctv q8_0)"
        )


def check_adapters(files: Iterable[str | os.PathLike[str]]) -> None:
    """Raises AdapterError where there is no memory for them."""
    sizes = {os.fspath(path): os.path.getsize(path) for path in files if os.path.exists(path)}
    needed = sum(sizes.values())
    left = memory_left(needed)
    if left is not None and needed > left:
        path = max(sizes, key=lambda path: sizes[path])
        have = f"this process may use {left / 1e9:.1f} GB beside the models that it has loaded"
        raise AdapterError(path, f"adapters of {needed / 1e9:.1f} GB do not fit: {have}")


def check_tower(file: GGUFFile, tensors: Iterable[str]) -> None:
    """Raises ModelError where there is no memory for a vision tower: for those of its file's tensors."""
    needed = sum(file.tensors[name].n_bytes for name in tensors if name in file.tensors)
    left = memory_left(needed)
    if left is not None and needed > left:
        have = f"this process may use {left / 1e9:.1f} GB beside the models that it has loaded"
        raise ModelError(f"{file.paths[0]}: a vision tower of {needed / 1e9:.1f} GB does not fit: {have}")


def _smaller(file: GGUFFile, memory: int) -> str:
    """Which quantization of the model would fit."""
    n_elements = sum(info.n_elements for info in file.tensors.values())
    T = TensorType
    for kind in (T.Q8_0, T.Q6_K, T.Q5_K, T.Q4_K, T.Q3_K, T.Q2_K):
        if n_elements / kind.block_size * kind.block_bytes < _ROOM * memory:
            return f"quantized to {kind.name} it would fit"
    return f"at most {8 * memory / n_elements:.1f} bits a weight would fit, so a smaller model is needed"
