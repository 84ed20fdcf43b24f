"""Keys and values of images, for text models with layers that attend to images (cross-attention).

A token sees the images that stand last before it, itself included: one, or several that stand side by side;
up to the next image, whose tokens see that one only. Tokens before the first image see none. What a run of
images gives is computed once, into pages of the model's space "image", and is shared by all sequences that
see it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from pyllamacpu.engine.adapters import LoadedAdapters
from pyllamacpu.engine.batch import Entry, Segment
from pyllamacpu.engine.images import ImageCache
from pyllamacpu.engine.pages import PAGE, KVCache
from pyllamacpu.graph.native_plan import NativePlan
from pyllamacpu.model.lora import AdapterScales
from pyllamacpu.native import ffi

Floats = npt.NDArray[np.float32]
_LIMIT = 1 << 30  # bytes of pages that are kept for images that may come again


class ImageKeys:
    """Keys and values of `n` states in the pages of `space`. Freed when it is garbage."""

    def __init__(self, cache: KVCache, space: int, n: int, begin: ImageKeys | None = None) -> None:
        """Room for n; as far as `begin` goes its pages are shared. Raises ContextError when there is none."""
        self.cache, self.space, self.n = cache, space, n
        self.pages: list[int] = []
        if begin is not None:
            self.pages += [cache.share(page, space) for page in begin.pages[: begin.n // PAGE]]
            if begin.n % PAGE:
                self.pages.append(cache.copy(begin.pages[-1], space))
        while len(self.pages) * PAGE < n:
            self.pages.append(cache.new_page(space))
        self.table = ffi.new("uintptr_t[]", self.pages)

    def __del__(self) -> None:
        for page in getattr(self, "pages", ()):
            self.cache.release(page, self.space)

    @property
    def n_bytes(self) -> int:
        return len(self.pages) * self.cache.space_page_bytes[self.space]


@dataclass(frozen=True)
class _Group:
    """Images side by side, by their ids, and what else decides their keys."""

    ids: tuple[int, ...]
    adapters: AdapterScales


class ImageKeyCache:
    """What the sequences of one engine see of images. Not thread-safe: the engine's steps call it."""

    def __init__(self, cache: KVCache, images: ImageCache, limit_bytes: int = _LIMIT) -> None:
        self.cache, self.images, self.limit_bytes = cache, images, limit_bytes
        self.space = next(i for i, space in enumerate(cache.spaces) if space.kind == "image")
        self._alive: WeakValueDictionary[_Group, ImageKeys] = WeakValueDictionary()
        self._recent: OrderedDict[_Group, ImageKeys] = OrderedDict()
        cache.let_go = self.let_go

    def most_bytes(self, n_states: int) -> int:
        """Of the pages of an image. Behind others it has one more at the most, which begins with theirs."""
        return (-(-n_states // PAGE) + 1) * self.cache.space_page_bytes[self.space]

    def keep_at_most(self, n_bytes: int) -> None:
        """Of images that may come again, from now on, and no more than usual."""
        with self.cache.lock:
            self.limit_bytes = min(n_bytes, _LIMIT)

    def segments(
        self, entries: Seq[Entry], plan: NativePlan, adapters: LoadedAdapters
    ) -> list[list[Segment]]:
        """Each entry's tokens in runs that see the same images. Raises OptionError for images that are no
        longer in memory, ContextError.
        """
        return [self._segments(entry, plan, adapters) for entry in entries]

    def _segments(self, entry: Entry, plan: NativePlan, adapters: LoadedAdapters) -> list[Segment]:
        sequence, found = entry.sequence, []
        seen, start = sequence.seen_images(), 0
        for i, token in enumerate(entry.tokens):
            if token < 0:
                if i > start:
                    found.append(Segment(i - start, self._keys(seen, sequence.adapters, plan, adapters)))
                before = entry.tokens[i - 1] if i else sequence.tokens[-1] if sequence.tokens else 0
                seen, start = (*seen, token) if before < 0 else (token,), i
        found.append(Segment(len(entry.tokens) - start, self._keys(seen, sequence.adapters, plan, adapters)))
        sequence.image_keys = found[-1].keys  # held as long as it is seen
        return found

    def _keys(
        self, ids: tuple[int, ...], used: AdapterScales, plan: NativePlan, adapters: LoadedAdapters
    ) -> ImageKeys | None:
        if not ids:
            return None
        group = _Group(ids, used)
        if (keys := self._alive.get(group)) is None:
            begin = self._keys(ids[:-1], used, plan, adapters)
            (image,) = self.images.of_tokens(ids[-1:])
            states = image.states
            assert states is not None
            start = begin.n if begin else 0
            keys = ImageKeys(self.cache, self.space, start + len(states), begin)
            self.fill(keys, start, states, plan, adapters.rows([used]))
            self._alive[group] = keys
        self._keep(group, keys)
        return keys

    def _keep(self, group: _Group, keys: ImageKeys) -> None:
        with self.cache.lock:  # whoever needs pages may ask to let go of some
            self._recent[group] = keys
            self._recent.move_to_end(group)
            while len(self._recent) > 1 and sum(k.n_bytes for k in self._recent.values()) > self.limit_bytes:
                self._recent.popitem(last=False)

    def let_go(self, n_bytes: int) -> bool:
        """Lets go of what has not been used for the longest; whether there was any."""
        with self.cache.lock:
            if not self._recent:
                return False
            self._recent.popitem(last=False)
            return True

    def fill(
        self, keys: ImageKeys, start: int, states: Floats, plan: NativePlan, scales: Floats | None
    ) -> None:
        """Keys and values of `states` (n, dim), from position `start` on."""
        pages = ffi.new("uintptr_t **[]", len(self.cache.spaces))
        of_space = ffi.new("uintptr_t *[]", [keys.table])
        pages[self.space] = of_space
        for first in range(0, len(states), plan.max_tokens):
            rows = np.ascontiguousarray(states[first : first + plan.max_tokens], np.float32)
            n, at = len(rows), start + first
            ints = ffi.new("int32_t[]", [*range(-1, -1 - n, -1), *range(at, at + n), *[0] * n])
            batch = ffi.new("pl_batch *")
            batch.n_tokens, batch.n_sequences = n, 1
            batch.tokens, batch.positions, batch.sequences = ints, ints + n, ints + 2 * n
            batch.embeddings = ffi.from_buffer("float *", rows)
            batch.n_embeddings, batch.embedding_stride = rows.shape
            batch.pages = ffi.cast("const uintptr_t *const *const *", pages)
            if scales is not None:
                batch.adapter_scales, batch.n_adapters = ffi.from_buffer("float *", scales), scales.shape[1]
            plan.run(batch)
