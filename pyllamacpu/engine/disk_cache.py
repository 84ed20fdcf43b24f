"""The disk behind a prefix cache: pages go there as they are computed, and come back before they are needed.

Two threads beside the one that steps. The writer follows what the tree is given and writes what the folder
lacks; it holds no page, so a page that leaves memory before its turn is not written. The reader fills pages
for a request that waits and puts them into the tree, where admission finds them as if they had been there.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Any

from pyllamacpu.engine.page_files import PageFiles
from pyllamacpu.engine.page_keys import next_key, root_key
from pyllamacpu.engine.pages import PAGE, KVCache
from pyllamacpu.engine.prefix_cache import Node, PrefixCache, Root
from pyllamacpu.errors import ContextError
from pyllamacpu.forks import call_in_child, fork_safe_lock

_MOST_BEHIND = 1 << 14  # pages that may wait to be written
_RENEW = 60.0  # seconds after which a page in use is noted as used on the disk again
_FLUSH = 5.0  # seconds that the end may wait for the writer
_PATIENCE = 0.25  # seconds that reading may take longer than computing would
_PAGE_SECONDS = 0.05  # that computing a page takes, while nothing was measured
_NICE = 10  # of the writer: tokens go first


class Reading:
    """Pages that are being read for a request. `done` is called in the reader's thread."""

    def __init__(
        self,
        tokens: Seq[int],
        root: Root,
        page_seconds: float,
        is_wanted: Callable[[], bool],
        done: Callable[[], None],
    ) -> None:
        self.tokens, self.root = tokens, root
        self.page_seconds = page_seconds or _PAGE_SECONDS
        self.is_wanted, self.done = is_wanted, done


class DiskCache:
    """Connects the tree of one model with a folder, which other models and processes may share. base: what
    all of the model's pages depend on (`page_keys.base_key`).
    """

    def __init__(self, prefixes: PrefixCache, cache: KVCache, files: PageFiles, base: bytes) -> None:
        self.files = files
        self._prefixes, self._cache, self._base = prefixes, cache, base
        sizes = [cache.space_page_bytes[space] for space in cache.token_spaces]
        self._buffers = [memoryview(bytearray(size)) for size in sizes]  # the page that is being written
        self._lock = fork_safe_lock()
        self._changed = threading.Condition(self._lock)
        self._paths: deque[list[Node]] = deque()  # to be written
        self._n_behind = 0  # pages of those, and of the one in work
        self._readings: deque[Reading] = deque()  # the first is in work
        self._closed = False
        call_in_child(self._lose_threads)
        prefixes.on_insert = self._note
        self._threads = [
            threading.Thread(target=target, name=f"disk cache {name}", daemon=True)
            for name, target in (("writer", self._write_all), ("reader", self._read_all))
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Writes what is left, for a few seconds at most, and ends the threads. May be called again."""
        self.flush(_FLUSH)
        with self._lock:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread.ident != threading.get_ident():
                thread.join()

    def flush(self, seconds: float) -> bool:
        """Waits until all is written, for so long at most; whether it is."""
        with self._lock:
            return self._changed.wait_for(lambda: self._n_behind == 0 or self._closed, seconds)

    def _lose_threads(self) -> None:
        """In a forked child: it goes on without a disk."""
        self._closed = True
        self._n_behind, self._threads = 0, []
        self._paths.clear()
        while self._readings:
            self._readings.popleft().done()

    # Writing

    def _note(self, path: list[Node], root: Root) -> None:
        """The pages of `path` are in the tree."""
        if self._closed or (key := root_key(self._base, root)) is None:
            return
        now = time.monotonic()
        if all(node.stored_at and now - node.stored_at < _RENEW for node in path):
            return
        with self._lock:
            if self._n_behind + len(path) > _MOST_BEHIND or self.files.is_resting:
                self.files.counts.n_dropped += sum(not node.stored_at for node in path)
                return
            first = path[0].parent
            assert first is not None
            first.digest = key
            self._paths.append(path)
            self._n_behind += len(path)
            self._changed.notify_all()

    def _write_all(self) -> None:
        if sys.platform == "linux":  # where a thread has a nice value of its own
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while True:
            with self._lock:
                self._changed.wait_for(lambda: self._paths or self._closed)
                if self._closed:
                    return
                path = self._paths.popleft()
            self._write_path(path)
            with self._lock:
                self._n_behind = max(self._n_behind - len(path), 0)
                self._changed.notify_all()

    def _write_path(self, path: list[Node]) -> None:
        """Notes all pages as used, a page later than those behind it, so that leaves go first; writes those
        that are not there.
        """
        now = time.time_ns()
        for depth, node in enumerate(path):
            if self._closed:
                return
            used = now - 1000 * depth
            if self._is_stored(node, used) or self._write(node, used):
                node.stored_at = time.monotonic()
            else:
                return  # what is behind could not be found

    def _digest(self, node: Node) -> bytes:
        if node.digest is None:
            assert node.parent is not None
            node.digest = next_key(self._digest(node.parent), node.key, self._cache.images)
        return node.digest

    def _is_stored(self, node: Node, used: int) -> bool:
        """Notes a page as used; False when it is not there, or lacks a space's part (of a past chunk)."""
        key = self._digest(node)
        node.stored_spaces = node.stored_spaces or self.files.spaces(key)
        return not _spaces(node) & ~node.stored_spaces and self.files.touch(key, used)

    def _write(self, node: Node, used: int) -> bool:
        spaces = 0 if self.files.is_resting else self._prefixes.copy_pages(node, self._buffers)
        if not spaces:
            self.files.counts.n_dropped += 1
            return False
        buffers = [buffer for i, buffer in enumerate(self._buffers) if spaces >> i & 1]
        if not self.files.write(self._digest(node), spaces, buffers, used):
            return False
        node.stored_spaces = spaces
        return True

    # Reading

    def read(self, reading: Reading) -> bool:
        """Begins to read the pages that `tokens` begin with and that are not in memory; False if there are
        none: `done` is not called then. It is quick.
        """
        if not self._find(reading):
            return False
        with self._lock:  # never around the tree's own lock, under which `_note` is called
            if self._closed:
                return False
            self._readings.append(reading)
            self._changed.notify_all()
        return True

    def _find(self, reading: Reading) -> bool:
        """Whether the first page that is not in memory is on the disk."""
        n, _ = self._prefixes.find(reading.tokens, reading.root)
        keys = self._keys(reading, n + 1)
        return len(keys) > n and self.files.has(keys[n])

    def _keys(self, reading: Reading, most: int) -> list[bytes]:
        """Of its full pages, from the start."""
        key = root_key(self._base, reading.root)
        keys: list[bytes] = []
        if key is None:
            return keys
        for start in range(0, min(len(reading.tokens) // PAGE, most) * PAGE, PAGE):
            key = next_key(key, reading.tokens[start : start + PAGE], self._cache.images)
            keys.append(key)
        return keys

    def _read_all(self) -> None:
        while True:
            with self._lock:
                self._changed.wait_for(lambda: self._readings or self._closed)
                if self._closed and not self._readings:
                    return
                reading = self._readings[0]
            try:
                if not self._closed:
                    self._read_pages(reading)
            finally:  # nobody waits for a reader that has failed
                with self._lock:
                    self._readings.popleft()
                reading.done()

    def _read_pages(self, reading: Reading) -> None:
        """Puts pages into the tree, in their order, as far as they are there and computing would not be
        faster.
        """
        start, node = self._prefixes.find(reading.tokens, reading.root)
        keys = self._keys(reading, len(reading.tokens))
        began = time.monotonic()
        for i in range(start, len(keys)):
            late = time.monotonic() - began - (i - start) * reading.page_seconds
            if late > _PATIENCE or self._closed or not reading.is_wanted():
                return
            if (pages := self._read_page(keys[i])) is None:
                return
            tokens = tuple(reading.tokens[i * PAGE : (i + 1) * PAGE])
            node = self._prefixes.attach(node, tokens, pages, reading.root)
            if node is None:
                return
            node.digest, node.stored_at, node.stored_spaces = keys[i], time.monotonic(), _spaces(node)

    def _read_page(self, key: bytes) -> tuple[int, ...] | None:
        """New pages of a key, one for each space; None if there are none."""
        pages: list[int] = []

        def room(spaces: int) -> list[Any] | None:
            if spaces >> len(self._buffers):
                return None
            for i, space in enumerate(self._cache.token_spaces):
                pages.append(self._cache.new_page(space) if spaces >> i & 1 else 0)
            return [
                self._cache.bytes_of(page, space)
                for page, space in zip(pages, self._cache.token_spaces, strict=True)
                if page
            ]

        whole = False
        try:
            whole = self.files.read(key, room)
        except ContextError:  # memory is full
            pass
        finally:
            if not whole:
                for page, space in zip(pages, self._cache.token_spaces, strict=False):
                    if page:
                        self._cache.release(page, space)
        return tuple(pages) if whole else None


def _spaces(node: Node) -> int:
    """Bits of the spaces that a page is there for."""
    return sum(bool(page) << i for i, page in enumerate(node.pages))
