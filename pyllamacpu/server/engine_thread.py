"""The one thread that steps the engines, and the streams of events that lead from it into the event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from pyllamacpu.engine.generate import HiddenRequest, Request
from pyllamacpu.engine.handle import Event, Handle
from pyllamacpu.engine.scheduler import Scheduler
from pyllamacpu.server.errors import HTTPError

log = logging.getLogger("pyllamacpu.server")

AHEAD = 32  # events that may lie unread before a request is passed over: its reader is slow

Result = TypeVar("Result")


class EventStream:
    """The events of some requests, for one task of the event loop. `close` ends those that are not over."""

    def __init__(self, thread: EngineThread, scheduler: Scheduler) -> None:
        self._thread, self._scheduler = thread, scheduler
        self._events: deque[tuple[int, Event]] = deque()
        self._unread: dict[int, int] = {}  # events of each request that lie here
        self._arrived = asyncio.Event()
        self._closed = False
        self._handles: dict[int, Handle] = {}  # that are not over

    def submit(self, index: int, request: Request | HiddenRequest) -> None:
        """Hands request number `index` to the scheduler; any thread may call it. Raises what
        `Scheduler.submit` raises.
        """
        self._unread[index] = 0
        handle = self._scheduler.submit(request, owner=(self, index))
        self._handles[index] = handle
        if self._closed:  # meanwhile
            self._scheduler.cancel(handle)
        self._thread.wake()

    def deliver(self, index: int, event: Event) -> None:
        """An event has come. Called in the event loop."""
        self._events.append((index, event))
        self._unread[index] += 1
        if self._unread[index] >= AHEAD:
            event.handle.paused = True
        self._arrived.set()

    async def next(self) -> tuple[int, Event]:
        """The next event, and whose it is; raises the error that ended a request."""
        while not self._events:
            self._arrived.clear()
            await self._arrived.wait()
        index, event = self._events.popleft()
        self._unread[index] -= 1
        if event.handle.paused and self._unread[index] < AHEAD // 2:
            event.handle.paused = False
            self._thread.wake()
        if event.is_last:
            self._handles.pop(index, None)
        if event.error is not None:
            raise event.error
        return index, event

    def end(self, index: int) -> None:
        """Ends one request; what has come of it is forgotten."""
        if (handle := self._handles.pop(index, None)) is not None:
            self._scheduler.cancel(handle)
            self._thread.wake()
        self._events = deque(item for item in self._events if item[0] != index)

    def close(self) -> bool:
        """Whether there was something to end."""
        self._closed = True
        handles, self._handles = self._handles, {}
        for handle in handles.values():
            self._scheduler.cancel(handle)
        if handles:
            self._thread.wake()
        return bool(handles)


class EngineThread:
    """Steps the schedulers that were added, and runs calls between their steps."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._wake = threading.Condition()
        self._touched = False  # something was submitted, cancelled or called since the last look
        self._stopping = False
        self._schedulers: list[Scheduler] = []
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There is something new to do."""
        with self._wake:
            self._touched = True
            self._wake.notify()

    def call(self, function: Callable[[], Result]) -> Future[Result]:
        """Runs `function` in the engine thread between two steps."""
        future: Future[Result] = Future()
        self._calls.append((function, future))
        self.wake()
        return future

    def add(self, scheduler: Scheduler) -> None:
        scheduler.on_loaded = self.wake
        self.call(lambda: self._schedulers.append(scheduler))

    def remove(self, scheduler: Scheduler) -> Future[None]:
        """Ends the scheduler's requests and lets go of its pages."""

        def remove() -> None:
            self._schedulers.remove(scheduler)
            scheduler.close()

        return self.call(remove)

    @property
    def busy_seconds(self) -> float:
        """How long the thread has been in one step; 0 while it waits."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def stop(self) -> None:
        """Ends the thread after its step."""
        self._stopping = True
        self.wake()
        self._thread.join(timeout=60)

    def _run(self) -> None:
        while not self._stopping:
            with self._wake:
                while not self._touched and not any(s.has_work for s in self._schedulers):
                    self._wake.wait()
                self._touched = False
            self._busy_since = time.monotonic()
            self._run_calls()
            for scheduler in list(self._schedulers):
                self._step(scheduler)
            self._busy_since = None

    def _run_calls(self) -> None:
        while self._calls:
            function, future = self._calls.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

    def _step(self, scheduler: Scheduler) -> None:
        try:
            scheduler.settle()
            events = scheduler.step() if scheduler.has_work else []
        except Exception:
            log.exception("a step failed; its requests are ended")
            error = HTTPError("internal error in the engine; the log says more", status=500)
            events = [Event(handle, error=error) for handle in scheduler.unfinished()]
            scheduler.end_all()
        if events:
            self._loop.call_soon_threadsafe(_deliver, events)


def _deliver(events: list[Event]) -> None:
    for event in events:
        stream, index = event.handle.owner
        stream.deliver(index, event)
