"""What a scanner is, and how one's own is made known."""

from __future__ import annotations

import asyncio
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from pyllamacpu.errors import OptionError
from pyllamacpu.forks import fork_safe_lock
from pyllamacpu.safety.firewall_types import Message, ScanDecision, ScanResult, ScanStatus, Trace

Class = TypeVar("Class", bound="Callable[[], Scanner]")

_THREADS = 4  # of a scanner

registered: dict[str, Callable[[], Scanner]] = {}  # classes that are made without arguments


class Scanner(ABC):
    """Judges messages. One instance serves a whole firewall, several messages at a time."""

    def __init__(self, scanner_name: str, block_threshold: float = 1.0) -> None:
        is_number = isinstance(block_threshold, (int, float, np.integer, np.floating)) and math.isfinite(
            block_threshold
        )
        if isinstance(block_threshold, bool) or not is_number:  # nan would let everything pass
            raise OptionError(f"block_threshold={block_threshold!r:.60}: give a number")
        self.name = scanner_name
        self.block_threshold = block_threshold
        self.require_full_trace = False

    @abstractmethod
    async def scan(self, message: Message, past_trace: Trace | None = None) -> ScanResult: ...

    def load(self) -> None:
        """Loads what the first scan would, such as a model. Raises any PyllamacpuError."""
        return

    def close(self) -> None:
        """Frees what was loaded."""
        return

    def __str__(self) -> str:
        return self.name


class ThreadScanner(Scanner):
    """A scanner that computes: `check` runs in a thread of its own, so that an event loop goes on, and no
    scanner waits for another's.
    """

    def __init__(self, scanner_name: str, block_threshold: float = 1.0) -> None:
        super().__init__(scanner_name, block_threshold)
        self._threads_lock, self._is_closed = fork_safe_lock(), False
        self._threads: ThreadPoolExecutor | None = None
        self._process = 0

    async def scan(self, message: Message, past_trace: Trace | None = None) -> ScanResult:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor(), self._checked, message, past_trace)

    def _checked(self, message: Message, past_trace: Trace | None) -> ScanResult:
        if self._is_closed:  # meanwhile
            raise OptionError("it is closed")
        return self.check(message, past_trace)

    def _executor(self) -> ThreadPoolExecutor:
        """Of this process: a fork has none of its parent's threads. Raises OptionError when it is closed."""
        with self._threads_lock:
            if self._is_closed:
                raise OptionError("it is closed")
            if self._threads is None or self._process != os.getpid():
                self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix=self.name)
                self._process = os.getpid()
            return self._threads

    def close(self) -> None:
        """Waits for what runs; later scans fail, which blocks."""
        with self._threads_lock:
            self._is_closed = True
            threads = self._threads if self._process == os.getpid() else None
        if threads is not None:
            threads.shutdown(wait=True)  # cancelled futures would look like cancelled tasks to who waits

    @abstractmethod
    def check(self, message: Message, past_trace: Trace | None = None) -> ScanResult: ...


def register_scanner(name: str) -> Callable[[Class], Class]:
    """Makes a class of scanners known under a name, for a firewall's configuration."""

    def decorate(scanner: Class) -> Class:
        if not (isinstance(scanner, type) and issubclass(scanner, Scanner)):
            raise OptionError(f"{scanner!r:.80} is not a subclass of Scanner")
        registered[name] = scanner
        return scanner

    return decorate


def allow(reason: str, score: float = 0.0) -> ScanResult:
    return ScanResult(ScanDecision.ALLOW, reason, score)


def block(reason: str, score: float = 1.0) -> ScanResult:
    return ScanResult(ScanDecision.BLOCK, reason, score)


def failed(reason: str) -> ScanResult:
    """What could not be judged is blocked."""
    return ScanResult(ScanDecision.BLOCK, reason, 1.0, ScanStatus.ERROR)
