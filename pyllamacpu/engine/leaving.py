"""Work that somebody waits for, maybe not to its end: now and then it asks whether it is still wanted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Generic, TypeVar

from pyllamacpu.errors import Abandoned
from pyllamacpu.forks import call_in_child, fork_safe_lock

Result = TypeVar("Result")

_PATIENCE = 0.1  # seconds until who waits for another's work looks whether their own is still wanted


class Leaving:
    """Whether whoever waits for some work has left. Any thread may call it."""

    def __init__(self) -> None:
        self._has_left = threading.Event()

    def leave(self) -> None:
        self._has_left.set()

    @property
    def has_left(self) -> bool:
        return self._has_left.is_set()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, `check_wanted` raises when they have left."""
        before = _current.set(self)
        try:
            yield
        finally:
            _current.reset(before)

    def check(self) -> None:
        if self.has_left:
            raise Abandoned("whoever asked for this has left")


class _Waiter(Leaving):
    """One who waits for work of several: has left with this call, or before with whoever asked for it."""

    def __init__(self, asker: Leaving | None) -> None:
        super().__init__()
        self._asker = asker

    @property
    def has_left(self) -> bool:
        return super().has_left or (self._asker is not None and self._asker.has_left)


class _SharedRun(Leaving, Generic[Result]):
    """Work that one thread does and others wait for: it is wanted until the last of them has left."""

    def __init__(self) -> None:
        super().__init__()
        self.over = threading.Event()
        self.result: Result | None = None  # stays None where the work came to nothing
        self._lock = fork_safe_lock()
        self._waiting: list[_Waiter] = []

    def join(self, waiter: _Waiter) -> bool:
        """One more who wants it. False: all had left before, and it comes to nothing."""
        with self._lock:
            if not self.has_left:
                self._waiting.append(waiter)
            return not self.has_left

    def check(self) -> None:
        with self._lock:
            if all(waiter.has_left for waiter in self._waiting):
                self.leave()
        super().check()

    def wait(self) -> Result | None:
        """What another thread makes; None where that came to nothing."""
        while not self.over.wait(_PATIENCE):
            check_wanted()
        if self.result is None:
            check_wanted()
        return self.result


class SingleFlight(Generic[Result]):
    """Work that several threads may want at once, by a key: the first one does it while the others wait."""

    def __init__(self) -> None:
        self._lock = fork_safe_lock()
        self._runs: dict[bytes, _SharedRun[Result]] = {}
        call_in_child(self._forget)

    def _forget(self) -> None:
        self._runs.clear()  # whoever did the work is not in a forked child

    def run(self, key: bytes, work: Callable[[], Result]) -> Result | None:
        """What `work()` gives, here or in the thread that does it already; None where that one failed or was
        interrupted: then it is for others to try. Raises what the work raises, and Abandoned soon after
        whoever waits here has left; the work goes on as long as anybody waits.
        """
        waiter = _Waiter(_current.get())
        with self._lock:
            run = self._runs.get(key)
            leads = run is None or not run.join(waiter)
            if run is None or leads:
                run = self._runs[key] = _SharedRun()
                run.join(waiter)
        try:
            return self._lead(key, run, work) if leads else run.wait()
        finally:
            waiter.leave()

    def _lead(self, key: bytes, run: _SharedRun[Result], work: Callable[[], Result]) -> Result:
        try:
            with run.watched():
                run.result = work()
            return run.result
        finally:
            with self._lock:
                if self._runs.get(key) is run:
                    del self._runs[key]
            run.over.set()


_current: ContextVar[Leaving | None] = ContextVar("leaving", default=None)


def check_wanted() -> None:
    """Raises Abandoned when whoever waits for what is under way here has left."""
    leaving = _current.get()
    if leaving is not None:
        leaving.check()
