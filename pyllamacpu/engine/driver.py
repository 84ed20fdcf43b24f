"""Several threads over one scheduler: whoever waits for its own request steps for all.

No thread of its own is needed: of the threads that wait, one leads the steps, and Ctrl-C reaches it, or one
that waits, as anywhere else.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from weakref import WeakSet, WeakValueDictionary

from pyllamacpu.engine.generate import HiddenRequest, Request
from pyllamacpu.engine.handle import Event, Handle
from pyllamacpu.engine.leaving import Leaving
from pyllamacpu.engine.prefix_cache import PrefixCache
from pyllamacpu.engine.scheduler import Scheduler
from pyllamacpu.engine.session import Session
from pyllamacpu.errors import RequestCancelled
from pyllamacpu.forks import call_in_child, fork_safe_lock

_LOOK_AGAIN = 0.5  # seconds: an interrupt may come to the thread that is about to wake another


class Stream:
    """The events of one request, for one thread to wait for. `ahead`: how many may lie unread before the
    request is passed over; None: any number, 0: it only goes on while somebody waits.
    """

    def __init__(self, driver: Driver, handle: Handle, ahead: int | None) -> None:
        self.handle = handle
        self._driver = driver  # which does not hold the stream: only whoever reads it does
        self._ahead = ahead
        self._events: deque[Event] = deque()
        self._changed = threading.Condition(driver._lock)
        self._waiting = False
        self._pause()

    def __del__(self) -> None:
        """Nobody is left to read it: its maker was interrupted before it could close it."""
        if hasattr(self, "_driver") and not self.handle.is_finished:
            self._driver._scheduler.cancel(self.handle)

    @property
    def session(self) -> Session | None:
        """That the request was given."""
        request = self.handle.request
        return request.session if isinstance(request, Request) else None

    def _pause(self) -> None:
        enough = self._ahead is not None and len(self._events) >= self._ahead
        self.handle.paused = enough and not self._waiting

    def next(self) -> Event:
        """The next event; raises the error that ended the request."""
        event = self._driver._wait(self)
        if event.error is not None:
            raise event.error
        return event

    def close(self) -> None:
        """Ends the request, if it is not over."""
        self._driver._forget(self)


class Cancellation:
    """Ends the requests of a thread from another one: those that are submitted inside `with`, also later,
    and what a vision tower does for their prompts.

    Who waits for one of them gets RequestCancelled; Abandoned, where a tower was at work.
    """

    def __init__(self) -> None:
        self.is_cancelled = False
        self._lock = threading.Lock()
        self._streams: WeakSet[Stream] = WeakSet()
        self._leaving = Leaving()
        self._watch = ExitStack()

    def __enter__(self) -> Cancellation:
        _current.cancellation = self
        self._watch.enter_context(self._leaving.watched())
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.close()
        _current.cancellation = None

    def cancel(self) -> None:
        self._leaving.leave()
        with self._lock:
            self.is_cancelled = True
            streams = list(self._streams)
        for stream in streams:
            stream.close()

    def add(self, stream: Stream) -> None:
        with self._lock:
            self._streams.add(stream)
        if self.is_cancelled:
            stream.close()


_current = threading.local()


class Driver:
    """Steps a scheduler for the threads that wait on its requests."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._lock = fork_safe_lock()
        self._streams: WeakValueDictionary[Handle, Stream] = WeakValueDictionary()
        self._leader: int | None = None  # the thread that steps, or keeps others from stepping
        self._idle = threading.Condition(self._lock)
        self._n_pausing = 0  # threads that wait to keep others from stepping
        self._steps_first = False  # a step is due before the next of them
        self._undelivered: deque[Event] = deque()
        self._closed: Exception | None = None
        call_in_child(self._lose_threads)

    def submit(self, request: Request | HiddenRequest, ahead: int | None = None) -> Stream:
        """Takes on a request: see `Scheduler.submit`."""
        if self._is_leader():  # a processor or criterion calls the model that is calling it
            return Driver(self._scheduler.nested()).submit(request, ahead)
        with self._lock:
            if self._closed is not None:
                raise self._closed
            stream = self._new_stream(request, ahead)
        if (cancellation := getattr(_current, "cancellation", None)) is not None:
            cancellation.add(stream)
        return stream

    def _new_stream(self, request: Request | HiddenRequest, ahead: int | None) -> Stream:
        owner = object()
        try:
            stream = Stream(self, self._scheduler.submit(request, owner), ahead)
        except BaseException:  # an interrupt: the scheduler may have taken it on
            for handle in self._scheduler.unfinished():
                if handle.owner is owner:
                    self._scheduler.cancel(handle)
            raise
        self._streams[stream.handle] = stream
        return stream

    def _is_leader(self) -> bool:
        return self._leader == threading.get_ident()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """No other thread steps meanwhile. Steps and those who pause them take turns."""
        me = threading.get_ident()
        if self._leader == me:
            yield
            return
        try:
            self._pause_steps()
            yield
        finally:
            was_paused = self._leader == me
            if was_paused:
                self._leader = None  # at once: an interrupt may come at any call
            with self._lock:
                self._steps_first |= was_paused
                if self._leader is None:
                    self._resign()
                self._call_leader()

    def _pause_steps(self) -> None:
        with self._lock:
            self._n_pausing += 1
            try:
                while self._leader is not None or (self._steps_first and self._next_leader() is not None):
                    self._idle.wait(_LOOK_AGAIN)
                self._leader = threading.get_ident()
            finally:
                self._n_pausing -= 1

    @property
    def prefixes(self) -> PrefixCache:
        """The pages of earlier requests; for any thread."""
        return self._scheduler.prefixes

    @property
    def sessions(self) -> WeakSet[Session]:
        """Those whose pages may be taken for requests, while no request works on them."""
        return self._scheduler.sessions

    def make_room(self) -> bool:
        """Sends a request back to wait, inside `paused`; False when there is none."""
        return self._scheduler.make_room()

    @property
    def n_evaluated(self) -> int:
        """Tokens that were evaluated so far."""
        return self._scheduler.n_evaluated

    def close(self, error: Exception) -> None:
        """Ends all requests; whoever waits, or comes later, gets `error`."""
        with self.paused():
            self._closed = error
            self._scheduler.close()
            with self._lock:
                for stream in self._streams.values():
                    stream._changed.notify()
                self._streams.clear()

    def _wait(self, stream: Stream) -> Event:
        with self._lock:
            stream._waiting = True
            try:
                stream._pause()
                while not stream._events:
                    if stream.handle not in self._streams:
                        raise self._closed or RequestCancelled("the request was cancelled")
                    if self._leader is None and (self._steps_first or not self._n_pausing):
                        self._lead()
                    else:
                        stream._changed.wait(_LOOK_AGAIN)
                event = stream._events.popleft()
                if event.is_last:
                    self._streams.pop(stream.handle, None)
                return event
            finally:
                stream._waiting = False
                stream._pause()
                self._call_leader()

    def _lead(self) -> None:
        """One step, with the lock released meanwhile."""
        self._steps_first = False
        self._leader = threading.get_ident()
        try:
            try:
                self._lock.release()
                self._undelivered.extend(self._scheduler.step())
            finally:
                try:
                    self._lock.acquire()
                except BaseException:  # an interrupt, before it was had or after: asked as Condition asks
                    if not self._lock._is_owned():  # type: ignore[attr-defined]
                        self._lock.acquire()
                    raise
            self._deliver()
        finally:
            self._leader = None  # at once: an interrupt may come at any call
            self._resign()

    def _lose_threads(self) -> None:
        """In a forked child: the other threads, and the requests that they waited for, are not here."""
        self._n_pausing = 0
        if self._leader is None or self._is_leader():
            return
        self._leader = None
        for stream in [s for s in self._streams.values() if s._waiting]:
            stream._waiting = False
            self._forget(stream)

    def _resign(self) -> None:
        self._leader = None
        self._scheduler.settle()
        self._idle.notify_all()

    def _deliver(self) -> None:
        while self._undelivered:
            event = self._undelivered[0]
            stream = self._streams.get(event.handle)
            if stream is not None and (not stream._events or stream._events[-1] is not event):
                stream._events.append(event)
                stream._pause()
                stream._changed.notify()
            self._undelivered.popleft()

    def _next_leader(self) -> Stream | None:
        """A stream whose thread waits."""
        return next((s for s in self._streams.values() if s._waiting and not s._events), None)

    def _call_leader(self) -> None:
        """Wakes a thread that waits with nobody to step for it, and those who wait to pause."""
        if self._leader is None:
            if (stream := self._next_leader()) is not None:
                stream._changed.notify()
            self._idle.notify_all()

    def _forget(self, stream: Stream) -> None:
        with self._lock:
            if self._streams.pop(stream.handle, None) is not None:
                self._scheduler.cancel(stream.handle)
                stream._changed.notify()
                if self._leader is None:
                    self._scheduler.settle()
