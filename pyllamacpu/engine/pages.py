"""The paged KV cache: pages of 32 positions, shared by reference count, and the sequences made of them."""

from __future__ import annotations

import struct
import threading
from typing import Any

import numpy as np

from pyllamacpu.errors import ContextError, OptionError
from pyllamacpu.model.config import ModelConfig, kv_type
from pyllamacpu.native import ffi, lib, pointer

PAGE = lib.PL_PAGE_POSITIONS
STATE_MAGIC = b"PLKV1\0\0\0"
_STATE = struct.Struct("<8sQQ")  # magic, page bytes, tokens


class PageCache:
    """Allocates pages for one model shape. Pages are counted: a page is freed when its last sequence lets go
    of it.
    """

    def __init__(self, config: ModelConfig, type_k: str, type_v: str) -> None:
        self.type_k, self.type_v = kv_type(type_k), kv_type(type_v)
        handle = lib.pl_cache_new(
            config.n_layers,
            config.layer_kv_heads(0),
            config.head_dim,
            config.value_dim,
            int(self.type_k),
            int(self.type_v),
        )
        what = f"a KV cache for heads of {config.head_dim} and {config.value_dim}"
        self.handle = ffi.gc(pointer(handle, what), lib.pl_cache_free)
        self.page_bytes = int(lib.pl_cache_page_bytes(self.handle))
        self._counts: dict[int, int] = {}
        # Reentrant: a sequence that becomes garbage meanwhile is released by the same thread.
        self._lock = threading.RLock()

    @property
    def pages_in_use(self) -> int:
        return len(self._counts)

    def new_page(self) -> int:
        """The address of a zeroed page. Raises ContextError when memory is exhausted."""
        with self._lock:
            page = int(lib.pl_page_new(self.handle))
            if page:
                self._counts[page] = 1
        if page == 0:
            raise ContextError(
                f"out of memory for the KV cache after {self.pages_in_use} pages of {self.page_bytes} "
                "bytes; use a smaller "
                "context or a smaller cache type (q8_0)"
            )
        return page

    def share(self, page: int) -> int:
        with self._lock:
            self._counts[page] += 1
        return page

    def release(self, page: int) -> None:
        with self._lock:
            self._counts[page] -= 1
            if self._counts[page] == 0:
                del self._counts[page]
                lib.pl_page_free(self.handle, page)

    def is_shared(self, page: int) -> bool:
        return self._counts[page] > 1

    def copy(self, page: int) -> int:
        new = self.new_page()
        ffi.memmove(ffi.cast("void *", new), ffi.cast("void *", page), self.page_bytes)
        return new

    def bytes_of(self, page: int) -> Any:
        """The page's memory as a writable buffer."""
        return ffi.buffer(ffi.cast("char *", page), self.page_bytes)


class Sequence:
    """Tokens that have been evaluated, and the pages that hold their keys and values.

    Made by `Engine.sequence`; freed by `close`, or when it is garbage.
    """

    def __init__(self, cache: PageCache) -> None:
        self.cache = cache
        self.tokens: list[int] = []
        self._pages: list[int] = []
        self._table = np.zeros(16, np.uintp)  # the pages' addresses for C

    def __len__(self) -> int:
        return len(self.tokens)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        self.truncate(0)

    def truncate(self, n: int) -> None:
        """Keeps the first `n` tokens (all of them when there are fewer)."""
        if n < 0:
            raise OptionError(f"a sequence cannot be cut to {n} tokens")
        del self.tokens[n:]
        kept = -(-len(self.tokens) // PAGE)
        while len(self._pages) > kept:
            self.cache.release(self._pages.pop())

    def fork(self) -> Sequence:
        """A sequence with the same tokens. Pages are shared until one of the two writes to them."""
        other = Sequence(self.cache)
        other.tokens = list(self.tokens)
        for page in self._pages:
            other._push(self.cache.share(page))
        return other

    def prepare(self, n: int) -> Any:
        """Makes room for `n` more tokens; returns the page table, `uintptr_t *`, good until the next call."""
        end = len(self.tokens) + n
        first = len(self.tokens) // PAGE
        if first < len(self._pages) and self.cache.is_shared(self._pages[first]):
            page = self.cache.copy(self._pages[first])
            self.cache.release(self._pages[first])
            self._pages[first] = page
            self._table[first] = page
        while len(self._pages) * PAGE < end:
            self._push(self.cache.new_page())
        return ffi.cast("uintptr_t *", self._table.ctypes.data)

    def trim(self) -> None:
        """Gives back the room that was prepared and not used."""
        self.truncate(len(self.tokens))

    def save(self) -> bytes:
        """Tokens, keys and values as bytes, for `load` into a sequence of an engine with the same model and
        cache types.
        """
        parts = [_STATE.pack(STATE_MAGIC, self.cache.page_bytes, len(self.tokens))]
        parts.append(np.asarray(self.tokens, np.int32).tobytes())
        parts += [bytes(self.cache.bytes_of(page)) for page in self._pages]
        return b"".join(parts)

    def load(self, data: bytes) -> None:
        """Becomes the saved sequence. Raises OptionError when the state is damaged or of another model."""
        if len(data) < _STATE.size:
            raise OptionError("the saved state is truncated")
        magic, page_bytes, n_tokens = _STATE.unpack_from(data)
        n_pages = -(-n_tokens // PAGE)
        expected = _STATE.size + 4 * n_tokens + n_pages * page_bytes
        if magic != STATE_MAGIC or page_bytes != self.cache.page_bytes or len(data) != expected:
            raise OptionError("the saved state is damaged, or of another model or KV cache type")
        self.truncate(0)
        self.prepare(n_tokens)
        at = _STATE.size
        self.tokens = np.frombuffer(data, np.int32, n_tokens, at).tolist()
        at += 4 * n_tokens
        for page in self._pages:
            self.cache.bytes_of(page)[:] = data[at : at + page_bytes]
            at += page_bytes

    def _push(self, page: int) -> None:
        if len(self._pages) == len(self._table):
            self._table = np.concatenate([self._table, np.zeros_like(self._table)])
        self._table[len(self._pages)] = page
        self._pages.append(page)
