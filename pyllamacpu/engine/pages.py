"""The paged KV cache: pages of 32 positions, shared by reference count, and the sequences made of them.

A model keeps keys and values in one or several KV spaces (`model.kv_space`). A page belongs to one space; a
sequence has one page table per space.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from typing import Any, BinaryIO

import numpy as np

from pyllamacpu.engine.token_ids import ImageIds
from pyllamacpu.errors import ContextError, ModelError, OptionError
from pyllamacpu.forks import fork_safe_lock
from pyllamacpu.model.config import kv_type
from pyllamacpu.model.kv_space import KVSpace
from pyllamacpu.model.lora import AdapterScales
from pyllamacpu.native import ffi, lib, pointer
from pyllamacpu.topology import shared_nodes

PAGE: int = lib.PL_PAGE_POSITIONS
KEPT_BEHIND = 64  # tokens that a sequence can be cut back by, whatever chunks are over
_STATE_KIND, _WITH_IMAGES = b"PLKV1", b"PLKV2"
_STATE = struct.Struct("<8sQQ")  # magic, KVCache.state_kind, tokens
_IMAGE_BYTES = struct.Struct("<Q")  # of what tells the images of a state
_DROPPED = struct.Struct("<Q")  # pages of past chunks that a chunked space no longer has

PageSet = tuple[int, ...]
"""The addresses of a sequence's pages for the same 32 positions, one per space; 0 where a space has none."""


class KVCache:
    """Allocates the pages of one model's spaces. Pages are counted: a page is freed when its last user lets
    go of it.

    With `limit_bytes`, `on_full(n_bytes)` is asked to let go of pages before one more would exceed it, and
    when memory is exhausted; it returns whether it let go of any. `lock` guards the counts, and whatever
    `on_full` works on.
    """

    def __init__(
        self, spaces: Seq[KVSpace], type_k: str, type_v: str, limit_bytes: int | None = None
    ) -> None:
        self.spaces = tuple(spaces)
        self.type_k, self.type_v = kv_type(type_k), kv_type(type_v)
        self.limit_bytes = limit_bytes
        self.on_full: Callable[[int], bool] | None = None
        self.let_go: Callable[[int], bool] | None = None  # likewise, of images' pages, which are asked first
        self.on_shared: Callable[[int, int], bool] | None = None  # may leave a page to its sequence
        self.images: ImageIds | None = None  # what tokens below zero stand for
        # Reentrant: a sequence that becomes garbage meanwhile is released by the same thread.
        self.lock = fork_safe_lock()
        self.handles = tuple(self._native(space) for space in self.spaces)
        self.space_page_bytes = tuple(int(lib.pl_cache_page_bytes(handle)) for handle in self.handles)
        self._counts: tuple[dict[int, int], ...] = tuple({} for _ in self.spaces)
        self.rounding = b""  # a digest of what 4-bit keys are rounded by, once it is known (key_rounding.py)
        # Those that keep tokens; what an image space keeps is not laid out by position.
        self.token_spaces = tuple(i for i, space in enumerate(self.spaces) if space.kind != "image")

    def _native(self, space: KVSpace) -> Any:
        if space.kind == "chunked" and (space.chunk < PAGE or space.chunk % PAGE):
            raise ModelError(f"attention chunks of {space.chunk} tokens are not multiples of {PAGE}")
        handle = lib.pl_cache_new(
            space.n_layers, space.kv_heads, space.k_dim, space.v_dim, int(self.type_k), int(self.type_v)
        )
        what = f"a KV cache for heads of {space.k_dim} and {space.v_dim}"
        cache = ffi.gc(pointer(handle, what), lib.pl_cache_free)
        if nodes := shared_nodes():  # every thread reads every page
            bits = ffi.new("uint64_t[16]")
            for node in nodes:
                bits[node // 64] |= 1 << node % 64
            lib.pl_cache_spread(cache, bits)
        return cache

    @property
    def rounding_bytes(self) -> int:
        """Bytes of what keys are rounded by, in all spaces that keep tokens."""
        handles = [self.handles[i] for i in self.token_spaces]
        return sum(int(lib.pl_cache_rounding_bytes(h) + lib.pl_cache_shift_bytes(h)) for h in handles)

    @property
    def page_bytes(self) -> int:
        """Bytes of keys and values of 32 tokens, in all spaces that keep tokens."""
        return sum(self.space_page_bytes[space] for space in self.token_spaces)

    @property
    def state_kind(self) -> int:
        """Tells pages apart that cannot be read as each other: their bytes in every space, and above these
        three bytes of what keys are rounded by, which have its means taken off.
        """
        return self.page_bytes | int.from_bytes(self.rounding[:3], "little") << 40

    def context_bytes(self, n_tokens: int, n_batch: int) -> int:
        """Bytes that one sequence of `n_tokens` takes at most, read `n_batch` tokens at a time."""
        total = 0
        for i in self.token_spaces:
            chunk = self.spaces[i].chunk
            most = min(n_tokens, chunk + KEPT_BEHIND + n_batch) if chunk else n_tokens
            total += -(-most // PAGE) * self.space_page_bytes[i]
        return total

    @property
    def pages_in_use(self) -> int:
        return sum(map(len, self._counts))

    @property
    def bytes_in_use(self) -> int:
        return sum(len(c) * n for c, n in zip(self._counts, self.space_page_bytes, strict=True))

    def new_page(self, space: int = 0) -> int:
        """The address of a zeroed page. Raises ContextError when the limit or memory is exhausted."""
        n_bytes = self.space_page_bytes[space]
        with self.lock:
            while not self._fits(n_bytes):
                if not self._evict(n_bytes):
                    raise self._full(f"the limit of {self.limit_bytes} bytes for the KV cache is reached")
            while not (page := int(lib.pl_page_new(self.handles[space]))):
                if not self._evict(n_bytes):
                    raise self._full("out of memory for the KV cache")
            self._counts[space][page] = 1
        return page

    def _fits(self, n_bytes: int) -> bool:
        return self.limit_bytes is None or self.bytes_in_use + n_bytes <= self.limit_bytes

    def _evict(self, n_bytes: int) -> bool:
        asked = (ask for ask in (self.let_go, self.on_full) if ask is not None)
        return any(ask(n_bytes) for ask in asked)

    def _full(self, what: str) -> ContextError:
        return ContextError(
            f"{what} ({self.pages_in_use} pages, {self.bytes_in_use / 1e6:.1f} MB, are in use); use a "
            "smaller context, fewer sequences at a time, a smaller cache type (q8_0), or allow more bytes"
        )

    def share(self, page: int, space: int = 0) -> int:
        with self.lock:
            self._counts[space][page] += 1
        return page

    def release(self, page: int, space: int = 0) -> None:
        counts = self._counts[space]
        with self.lock:
            counts[page] -= 1
            if counts[page] == 0:
                del counts[page]
                lib.pl_page_free(self.handles[space], page)

    def is_shared(self, page: int, space: int = 0) -> bool:
        return self._counts[space][page] > 1

    def own(self, page: int, space: int = 0) -> int:
        """The page itself if nobody else uses it, else a copy. Without room for one, the prefix cache is
        asked to do without the page. Raises ContextError.
        """
        if not self.is_shared(page, space):
            return page
        try:
            return self.copy(page, space)
        except ContextError:
            if self.on_shared is None or not self.on_shared(page, space):
                raise
        return page

    def n_users(self, page: int, space: int = 0) -> int:
        return self._counts[space][page]

    def copy(self, page: int, space: int = 0) -> int:
        self.share(page, space)  # `on_full` must not let go of it
        try:
            new = self.new_page(space)
        finally:
            self.release(page, space)
        ffi.memmove(ffi.cast("void *", new), ffi.cast("void *", page), self.space_page_bytes[space])
        return new

    def bytes_of(self, page: int, space: int = 0) -> Any:
        """The page's memory as a writable buffer."""
        return ffi.buffer(ffi.cast("char *", page), self.space_page_bytes[space])


class _PageTable:
    """The pages of one sequence in one space, and their addresses as the array that C reads."""

    __slots__ = ("_array", "_dropped", "cache", "pages", "space")

    def __init__(self, cache: KVCache, space: int) -> None:
        self.cache, self.space = cache, space
        self.pages: list[int] = []  # 0: a page of a past chunk that was let go
        self._dropped = 0  # the first so many were all let go
        self._array = ffi.new("uintptr_t[]", 16)

    @property
    def pointer(self) -> Any:
        """`uintptr_t *`, good until a page is added."""
        return self._array

    def push(self, page: int) -> None:
        if len(self.pages) == len(self._array):
            old, self._array = self._array, ffi.new("uintptr_t[]", 2 * len(self._array))
            ffi.memmove(self._array, old, ffi.sizeof(old))
        self._array[len(self.pages)] = page
        self.pages.append(page)

    def pop(self) -> None:
        if page := self.pages.pop():
            self.cache.release(page, self.space)
        self._dropped = min(self._dropped, len(self.pages))

    def prepare(self, start: int, end: int) -> None:
        """Makes positions `start` to `end` writable: a page of their own, where it was shared, and new
        ones.
        """
        first, pages = start // PAGE, self.pages
        if first < len(pages) and (own := self.cache.own(pages[first], self.space)) != pages[first]:
            self._replace(first, own)
        while len(pages) * PAGE < end:
            self.push(self.cache.new_page(self.space))

    def drop(self, end: int) -> None:
        """Lets go of the first pages, those of the positions before `end`."""
        for i in range(self._dropped, end // PAGE):
            if self.pages[i]:
                self._replace(i, 0)
        self._dropped = max(self._dropped, end // PAGE)

    def _replace(self, i: int, page: int) -> None:
        old, self.pages[i] = self.pages[i], page
        self._array[i] = page
        self.cache.release(old, self.space)


class Sequence:
    """Tokens that have been evaluated, and the pages that hold their keys and values.

    Made by `Engine.sequence`; freed by `close`, or when it is garbage.
    """

    def __init__(self, cache: KVCache, adapters: AdapterScales = ()) -> None:
        self.cache = cache
        self.adapters = adapters  # that its keys and values were computed with, and all further ones are
        self.tokens: list[int] = []
        self.images: dict[bytes, Any] = {}  # whose rows its tokens stand for: held, should they be read again
        self.image_keys: Any = None  # what its newest tokens see of images, held
        self._seen: tuple[int, tuple[int, ...]] = (0, ())  # after so many tokens: the ids of the images seen
        self._tables = [_PageTable(cache, space) for space in cache.token_spaces]

    def __len__(self) -> int:
        return len(self.tokens)

    def __del__(self) -> None:
        if hasattr(self, "_tables"):
            self.close()

    def close(self) -> None:
        del self.tokens[:]
        self.images, self.image_keys, self._seen = {}, None, (0, ())
        self.trim()

    def seen_images(self) -> tuple[int, ...]:
        """The ids of the images that stand side by side last among its tokens, the newest last."""
        start, seen = self._seen
        for i in range(start, len(self.tokens)):
            if (token := self.tokens[i]) < 0:
                seen = (*seen, token) if i and self.tokens[i - 1] < 0 else (token,)
        self._seen = len(self.tokens), seen
        return seen

    @property
    def n_pages(self) -> int:
        """Pages that hold tokens, or are prepared for them, in each space."""
        return len(self._tables[0].pages) if self._tables else 0

    def truncate(self, n: int) -> None:
        """Keeps the first `n` tokens (all of them when there are fewer).

        Raises OptionError when keys that the next token reads were let go: see `reusable`.
        """
        if n < 0 or (n < len(self.tokens) and self.reusable(n) < n):
            raise OptionError(f"a sequence cannot be cut to {n} tokens")
        del self.tokens[n:]
        if n < self._seen[0]:
            self._seen = 0, ()
        self.trim()

    def reusable(self, n: int) -> int:
        """The most tokens, at most `n`, that this sequence can be cut to and continued from: all pages of
        the chunk that they end in must be there.
        """
        n = min(n, len(self.tokens))
        cut = -1
        while cut != n:  # until all spaces agree
            cut = n
            for table in self._tables:
                chunk = self.cache.spaces[table.space].chunk
                start = n // chunk * chunk if chunk else n
                pages = table.pages[start // PAGE : -(-n // PAGE)] if start < n else ()
                if 0 in pages:
                    n = start + pages.index(0) * PAGE
        return n

    def fork(self) -> Sequence:
        """A sequence with the same tokens. Pages are shared until one of the two writes to them."""
        other = Sequence(self.cache, self.adapters)
        other.tokens, other.images = list(self.tokens), dict(self.images)
        n = -(-len(self.tokens) // PAGE)
        for mine, theirs in zip(self._tables, other._tables, strict=True):
            for page in mine.pages[:n]:
                theirs.push(page and self.cache.share(page, mine.space))
        return other

    def prepare(self, n: int) -> list[Any]:
        """Makes room for `n` more tokens; returns the page table of each space, `uintptr_t *`, good until
        the next call. Raises ContextError when the cache is full; `trim` then gives back what was prepared.
        """
        start = len(self.tokens)
        for table in self._tables:
            table.prepare(start, start + n)
        return [table.pointer for table in self._tables]

    def try_prepare(self, n: int) -> bool:
        """Whether there is room for `n` more tokens, which is made then."""
        try:
            self.prepare(n)
            return True
        except ContextError:
            self.trim()
            return False

    def trim(self) -> None:
        """Gives back the room that was prepared and not used."""
        kept = -(-len(self.tokens) // PAGE)
        for table in self._tables:
            while len(table.pages) > kept:
                table.pop()

    def drop_past_chunks(self, kept: int = 0) -> None:
        """Lets chunked spaces forget the chunks that are over: the next token does not read them. Those that
        the last `kept` tokens read stay.
        """
        for table in self._tables:
            if chunk := self.cache.spaces[table.space].chunk:
                table.drop(max(0, len(self.tokens) - kept) // chunk * chunk)

    def page_addresses(self, space: int) -> tuple[int, ...]:
        """Of its pages in a space that keeps tokens."""
        return tuple(self._tables[self.cache.token_spaces.index(space)].pages)

    # For the prefix cache

    def page_set(self, i: int) -> PageSet:
        """The pages of the positions from 32 * i on."""
        return tuple(table.pages[i] for table in self._tables)

    def extend_shared(self, tokens: Seq[int], pages: PageSet) -> None:
        """Puts 32 tokens behind full pages, with pages of another sequence, shared."""
        for table, page in zip(self._tables, pages, strict=True):
            table.push(page and self.cache.share(page, table.space))
        self.tokens.extend(tokens)

    def extend_copied(self, tokens: Seq[int], pages: PageSet) -> None:
        """Puts up to 32 tokens behind full pages, with copies of pages that begin with them."""
        for table, page in zip(self._tables, pages, strict=True):
            table.push(page and self.cache.copy(page, table.space))
        self.tokens.extend(tokens)

    # Saved states

    def saved(self) -> Iterator[Any]:
        """Tokens, keys and values, for `load` into a sequence of an engine with the same model and cache
        types, as buffers that are good until the next one is asked for.
        """
        ranges = b"" if self.cache.images is None else self.cache.images.saved_ranges(self.tokens)
        magic = _state_magic(self.adapters, _WITH_IMAGES if ranges else _STATE_KIND)
        yield _STATE.pack(magic, self.cache.state_kind, len(self.tokens))
        yield np.asarray(self.tokens, np.int32).tobytes()
        if ranges:
            yield _IMAGE_BYTES.pack(len(ranges)) + ranges
        n = -(-len(self.tokens) // PAGE)
        for table in self._tables:
            pages = [page for page in table.pages[:n] if page]
            if self.cache.spaces[table.space].chunk:
                yield _DROPPED.pack(n - len(pages))
            yield from (self.cache.bytes_of(page, table.space) for page in pages)

    def save(self, out: BinaryIO) -> None:
        """Writes `saved` to a file, page by page."""
        for part in self.saved():
            out.write(part)

    def load(self, source: BinaryIO) -> None:
        """Becomes the sequence that `save` wrote, read page by page.

        Raises OptionError when the state is damaged or of another model, ContextError when it does not fit.
        """
        magic, kind, n_tokens = _STATE.unpack(_exactly(source, _STATE.size))
        if is_of_other_adapters(magic, self.adapters):
            raise OptionError("the saved state was computed with other adapters, or other scales of them")
        if (
            magic[: len(_STATE_KIND)] not in (_STATE_KIND, _WITH_IMAGES)
            or kind != self.cache.state_kind
            or n_tokens >= 1 << 31
        ):
            raise OptionError("the saved state is damaged, or of another model or KV cache type")
        self.close()
        try:
            tokens: list[int] = []
            while len(tokens) < n_tokens:  # by parts: the count is not to be trusted with memory
                part = _exactly(source, 4 * min(n_tokens - len(tokens), 1 << 16))
                tokens += np.frombuffer(part, np.int32).tolist()
            if magic[: len(_WITH_IMAGES)] == _WITH_IMAGES:
                tokens = self._renumbered(source, tokens)
            for table in self._tables:
                self._load_pages(source, table, -(-n_tokens // PAGE))
        except BaseException:
            self.trim()
            raise
        self.tokens = tokens

    def _renumbered(self, source: BinaryIO, tokens: list[int]) -> list[int]:
        """The tokens with this engine's ids for the images of a saved state."""
        (n_bytes,) = _IMAGE_BYTES.unpack(_exactly(source, _IMAGE_BYTES.size))
        if self.cache.images is None or n_bytes > 1 << 30:
            raise OptionError("the saved state is damaged, or of another model")
        return self.cache.images.renumbered(tokens, _exactly(source, n_bytes))

    def _load_pages(self, source: BinaryIO, table: _PageTable, n: int) -> None:
        dropped = 0
        if chunk := self.cache.spaces[table.space].chunk:
            (dropped,) = _DROPPED.unpack(_exactly(source, _DROPPED.size))
            if dropped % (chunk // PAGE) or dropped > n:
                raise OptionError("the saved state is damaged: it lacks a part of a chunk")
        for i in range(n):
            table.push(0 if i < dropped else self.cache.new_page(table.space))
            if i >= dropped:
                _fill(source, self.cache.bytes_of(table.pages[i], table.space))


def is_of_other_adapters(state: bytes, adapters: AdapterScales) -> bool:
    """Whether a saved state (its beginning is enough) was computed with others than `adapters`, or with other
    scales of them.
    """
    kind = state[: len(_STATE_KIND)]
    magic = _state_magic(adapters, kind)
    return kind in (_STATE_KIND, _WITH_IMAGES) and state[: len(magic)] != magic


def _state_magic(adapters: AdapterScales, kind: bytes) -> bytes:
    """A saved state's first 8 bytes: the last three tell adapters and scales apart; zeros: none."""
    if not adapters:
        return kind + bytes(3)
    text = " ".join(f"{adapter.digest} {adapter.alpha!r} {scale!r}" for adapter, scale in adapters)
    return kind + hashlib.sha256(text.encode()).digest()[:3]


def _exactly(source: BinaryIO, n: int) -> bytes:
    data = source.read(n)
    if len(data) != n:
        raise OptionError("the saved state is damaged: it is truncated")
    return data


def _fill(source: BinaryIO, buffer: Any) -> None:
    """Fills a page from a file."""
    view, at = memoryview(buffer), 0
    while at < len(view):
        part = source.read(min(len(view) - at, 1 << 20))
        if not part:
            raise OptionError("the saved state is damaged: it is truncated")
        view[at : at + len(part)] = part
        at += len(part)
