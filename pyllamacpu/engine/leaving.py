"""Work that somebody waits for, maybe not to its end: now and then it asks whether it is still wanted."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from pyllamacpu.errors import Abandoned


class Leaving:
    """Whether whoever waits for some work has left. Any thread may call it."""

    def __init__(self) -> None:
        self._has_left = threading.Event()

    def leave(self) -> None:
        self._has_left.set()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, `check_wanted` raises when they have left."""
        before = _current.set(self)
        try:
            yield
        finally:
            _current.reset(before)

    def check(self) -> None:
        if self._has_left.is_set():
            raise Abandoned("whoever asked for this has left")


_current: ContextVar[Leaving | None] = ContextVar("leaving", default=None)


def check_wanted() -> None:
    """Raises Abandoned when whoever waits for what is under way here has left."""
    leaving = _current.get()
    if leaving is not None:
        leaving.check()
