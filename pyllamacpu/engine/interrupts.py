"""What has to be done whole or not at all: Ctrl-C waits until it is."""

from __future__ import annotations

import importlib
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

# What `signal` wraps in conversions to enums, which would make a block 7 us longer, this 1.
_signal: Any = importlib.import_module("_signal")


class Uninterrupted:
    """`with Uninterrupted():` what comes from SIGINT, most often a KeyboardInterrupt, comes behind the block.
    For short blocks that call nobody's code but ours. Python handles signals in the main thread only, so that
    there is nothing to do in others, and in programs that handle SIGINT without Python.
    """

    def __init__(self) -> None:
        self._handler: Any = None
        self._came: tuple[int, FrameType | None] | None = None

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        handler = _signal.getsignal(signal.SIGINT)
        if callable(handler):
            self._handler = handler
            try:
                _signal.signal(signal.SIGINT, self._wait)
            except ValueError:  # not the main interpreter
                self._handler = None

    def _wait(self, number: int, frame: FrameType | None) -> None:
        self._came = number, frame

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handler is None:
            return
        _signal.signal(signal.SIGINT, self._handler)
        if self._came is not None:
            self._handler(*self._came)
