"""Before a request runs: whether its pages fit, and reading those of them that are on the disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pyllamacpu.engine.handle import Handle
from pyllamacpu.engine.pages import PAGE, KVCache
from pyllamacpu.engine.prefix_cache import PrefixCache

if TYPE_CHECKING:
    from pyllamacpu.engine.disk_cache import DiskCache


def fits(handle: Handle, claiming: Sequence[Handle], cache: KVCache, prefixes: PrefixCache) -> bool:
    """Whether its prompt and the beginning of its answer fit beside what the others, who run or are about to,
    may come to need.
    """
    if cache.limit_bytes is None:
        return True
    promised = sum(max(0, _pages(h.n_tokens_most) - h.sequence.n_pages) for h in claiming)
    needed = _pages(handle.n_tokens_most) + promised
    free = (cache.limit_bytes - cache.bytes_in_use) // cache.page_bytes
    if needed <= free:
        return True
    shared = prefixes.n_in_use(handle.history, handle.sequence.adapters)
    return needed <= free + prefixes.evictable_bytes() // cache.page_bytes + shared


def begin_reading(
    disk: DiskCache, handle: Handle, page_seconds: float, on_read: Callable[[], None] | None
) -> bool:
    """Reads what the prefix cache lacks of a request's pages, meanwhile it `is_loading`; False if there is
    nothing to read. Asked once for each time that it waits. page_seconds: that computing a page takes.
    `on_read` is called in the disk's thread.
    """
    if handle._generation is None or handle._looked_up:
        return False
    from pyllamacpu.engine.disk_cache import Reading

    handle._looked_up = handle.is_loading = True
    began = time.perf_counter()

    def done() -> None:
        handle.is_loading = False
        if on_read is not None:
            on_read()

    tokens = handle.history[: handle.n_reusable + 1]
    reading = Reading(
        tokens, (handle.sequence.adapters, None), page_seconds, lambda: not handle.cancelled, done
    )
    begun = disk.read(reading)
    if begun:
        handle._admitted_at = handle._admitted_at or began  # its prompt takes this time too
    else:
        handle.is_loading = False
    return begun


def _pages(n_tokens: int) -> int:
    return -(-n_tokens // PAGE)
