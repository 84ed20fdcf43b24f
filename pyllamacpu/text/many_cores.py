"""Texts on all cores: long ones in parts, many of them side by side.

Merging in C does not hold Python's lock, so threads are enough. What comes out does not depend on their
number.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

from pyllamacpu.limits import cpus_usable

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

MIN_PART = 1 << 17  # bytes that are worth a thread: some milliseconds of work

LINE_ENDS = re.compile(rb"[!-~]\n(?=[A-Za-z])")
_here = threading.local()
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def parts_of(text: bytes) -> list[bytes]:
    """The text in one part for each usable CPU, in order, cut where a word ends in every pattern of
    bpe_words.RULES.

    That is after a lone line end between a visible ASCII character and an ASCII letter: no alternative holds
    a line end and then a letter, none looks back, and what looks ahead (a run of spaces leaves its last one
    to a word) sees a single character here, which is a word whatever comes next. Parts have MIN_PART bytes at
    least; a text without such a place stays whole.
    """
    n = min(_threads(), len(text) // MIN_PART)
    cuts = [0]
    for i in range(1, n):
        place = LINE_ENDS.search(text, max(cuts[-1], len(text) * i // n))
        if place is None:
            break
        if place.end() > cuts[-1]:
            cuts.append(place.end())
    return [text[begin:end] for begin, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]


def on_all_cores(work: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    """`work` of each item, in order. On a thread that does such work already, one after the other."""
    if len(items) < 2 or _threads() < 2:
        return [work(item) for item in items]
    return list(_pool(cpus_usable(), os.getpid()).map(work, items))


def encode_texts(encode: Callable[[bytes], list[int]], texts: Sequence[bytes]) -> list[list[int]]:
    """`encode` of each text: short ones in groups that are worth a thread, each long one by all threads."""
    groups = list(_groups(texts))
    together = on_all_cores(lambda group: [*map(encode, group)], [g for g in groups if len(g) > 1])
    found = iter(together)
    return [*chain.from_iterable(next(found) if len(g) > 1 else [encode(g[0])] for g in groups)]


def _groups(texts: Sequence[bytes]) -> Iterator[list[bytes]]:
    """Runs of texts: a long one alone, others with MIN_PART bytes or more together."""
    group: list[bytes] = []
    size = 0
    for text in texts:
        long = len(text) >= 2 * MIN_PART
        if group and (long or size >= MIN_PART):
            yield group
            group, size = [], 0
        if long:
            yield [text]
        else:
            group.append(text)
            size += len(text)
    if group:
        yield group


def _threads() -> int:
    return 1 if getattr(_here, "works", False) else cpus_usable()


def _begin() -> None:
    _here.works = True


@lru_cache(maxsize=2)
def _pool(n_threads: int, process: int) -> ThreadPoolExecutor:
    """Of this process: a forked one has none of its parent's threads."""
    from concurrent.futures import ThreadPoolExecutor  # it imports logging, which few need

    return ThreadPoolExecutor(n_threads, thread_name_prefix="tokenize", initializer=_begin)
