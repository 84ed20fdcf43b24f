"""Standard streams that are closed, full or gone: what the command line makes of them."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO

STREAM_FAILS = "a standard stream cannot be used"


def open_streams() -> bool:
    """Puts the null device in the place of closed standard streams, so that no file that is opened later gets
    their number and what is meant for a terminal. Returns whether there is somewhere to print to.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # which is given the lowest free number
    printed = sys.stdout is not None
    # These stay open until Python exits, as the streams that they stand for would (hence SIM115).
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    # A terminal that cannot show a character shows `?` instead of failing; bytes that are no character when
    # they are typed are found where the line is used.
    for stream, errors in ((sys.stdout, "replace"), (sys.stderr, "replace"), (sys.stdin, "surrogateescape")):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure:
            reconfigure(errors=errors)
    return printed


def give_up(stream: TextIO) -> None:
    """Sends what a stream still holds to the null device: Python flushes it once more at exit, which must not
    fail either.
    """
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
