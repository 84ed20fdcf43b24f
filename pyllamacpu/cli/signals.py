"""A command that is told to end (SIGTERM, or SIGHUP of a terminal that closes) ends as after Ctrl-C:
temporary files go, and what is whole stays.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

_NUMBERS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Ended(SystemExit):
    """Raised in the main thread by a signal; what catches errors lets it pass."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Raises Ended in the block when one of the signals comes, unless it is ignored (nohup) or somebody
    else's. Another one while the block unwinds ends the process at once.
    """
    kept = []
    with contextlib.suppress(ValueError):  # not the main thread
        for number in _NUMBERS:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _end)
                kept.append(number)
    try:
        yield
    finally:
        for number in kept:
            signal.signal(number, signal.SIG_DFL)


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_DFL)
    raise Ended(number)


def end_by(number: int) -> None:
    """Ends this process by the signal that it got, so that whoever waits for it sees which."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
