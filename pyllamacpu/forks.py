"""Locks that survive a fork.

A fork takes only the calling thread along. A lock that another thread held stays locked in the child, and
nobody is there to release it: `fork_safe_lock` makes locks that are free in the child, unless the forking
thread itself holds them. What such a lock protects must be fit for use wherever the other thread was
interrupted, or be put right by a method given to `call_in_child`.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from threading import RLock

_locks: weakref.WeakSet[RLock] = weakref.WeakSet()
_calls: list[weakref.WeakMethod[Callable[[], None]]] = []


def fork_safe_lock() -> RLock:
    """A new `threading.RLock` that is not held in a forked child by a thread that is not there."""
    lock = threading.RLock()
    _locks.add(lock)
    return lock


def call_in_child(method: Callable[[], None]) -> None:
    """The bound method is called in every forked child, once locks are free, as long as its object lives."""
    _calls[:] = [call for call in _calls if call() is not None]
    _calls.append(weakref.WeakMethod(method))


def _after_fork() -> None:
    for lock in _locks:
        # What the standard library itself calls for this (logging, threading, concurrent.futures).
        if not lock._is_owned():  # type: ignore[attr-defined]
            lock._at_fork_reinit()  # type: ignore[attr-defined]
    for call in _calls:
        if (method := call()) is not None:
            method()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
