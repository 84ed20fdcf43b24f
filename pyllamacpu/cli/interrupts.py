"""Ctrl-C before there is anything that it could stop: the program ends quietly. This imports next to nothing,
and is imported first.
"""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

INTERRUPTED = 130  # 128 + SIGINT, as shells count


def leave(number: int = signal.SIGINT, frame: object = None) -> NoReturn:
    """Ends the process at once: there is nothing yet that would have to be put in order."""
    os._exit(INTERRUPTED)


def interrupts_leave() -> None:
    """From here on Ctrl-C ends the process, unless it is ignored, or somebody's already."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave)


def interrupts_raise() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
