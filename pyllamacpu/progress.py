"""What a person sees while something long runs: a bar or a line on a terminal, a line now and then elsewhere.

On stderr: results go to stdout.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from pyllamacpu.units import decimal_bytes, duration

if TYPE_CHECKING:
    from rich.progress import Progress

LINE_EVERY = 5.0  # seconds between lines where there is no terminal
DRAW_EVERY = 0.2  # seconds between two drawings of a line on a terminal

_CODES = {*range(32), *range(127, 160)} - {ord("\n"), ord("\t")}
CONTROL = dict.fromkeys(_CODES, "\N{REPLACEMENT CHARACTER}")
"""For `str.translate`: words of a file or a model must not move a terminal's cursor, or worse."""

OnCount = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


class OnBytes(Protocol):
    """Called with the bytes done so far, and what is being done."""

    def __call__(self, done: int, text: str = "", /) -> None: ...


def is_terminal(stream: TextIO) -> bool:
    """True when `stream` is a terminal that understands control codes."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def one_line(text: str) -> str:
    """`text` on one line, with nothing in it that is not printed."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))


def visible(text: str, stream: TextIO) -> str:
    """`text` as it is, but on a terminal (of whatever kind) without control characters."""
    return text.translate(CONTROL) if stream.isatty() else text


def notify(text: str) -> None:
    """Says one line on stderr."""
    print(text.translate(CONTROL), file=sys.stderr, flush=True)


class StatusLine:
    """The last line of a terminal, drawn over and over, and gone at the end."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.shown = False

    def show(self, text: str) -> None:
        """The text, as far as one line holds it: more could not be taken back."""
        import shutil

        text = text[: max(shutil.get_terminal_size().columns - 1, 1)]
        print(f"\r\x1b[K{text.translate(CONTROL)}", end="", file=self.stream, flush=True)
        self.shown = True

    def clear(self) -> None:
        if self.shown:
            print("\r\x1b[K", end="", file=self.stream, flush=True)
            self.shown = False


def clear_line() -> None:
    """Empties the last line on stderr's terminal, on which a bar may stand: before something is printed."""
    if is_terminal(sys.stderr):
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress_line(lines: bool = False) -> Iterator[OnCount]:
    """A line with what is done of what, and the time left. Where there is no terminal nothing, or with
    `lines` a line now and then.
    """
    line, terminal = StatusLine(sys.stderr), is_terminal(sys.stderr)
    start = time.monotonic()
    drawn = 0.0 if terminal else start

    def show(text: str, done: int, total: int) -> None:
        nonlocal drawn
        now = time.monotonic()
        if not terminal and (not lines or now - drawn < LINE_EVERY):
            return
        if now - drawn < DRAW_EVERY and done < total:
            return
        drawn = now
        left = (now - start) / max(done, 1) * (total - done)
        (line.show if terminal else notify)(f"{text}  {done}/{total}, {duration(left)} left")

    try:
        yield show
    finally:
        line.clear()


@contextlib.contextmanager
def byte_bar(total: int, label: str = "") -> Iterator[OnBytes]:
    """A bar of `total` bytes with the rate and the time left; a line now and then where it is not a
    terminal. `label` is shown until something else is.
    """
    if not is_terminal(sys.stderr):
        if label:
            notify(f"{label} ({decimal_bytes(total)}) ...")
        yield _byte_lines(total, label)
        return
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with _bar(TextColumn("{task.description}"), *columns) as bar:
        task = bar.add_task(escape(label), total=total)

        def show(done: int, text: str = "", /) -> None:
            description = escape(text.translate(CONTROL)) if text else None
            bar.update(task, completed=min(done, total), description=description)

        yield show


@contextlib.contextmanager
def count_bar() -> Iterator[OnCount]:
    """A bar on the terminal of things to be done. It is drawn only when it is called: a thread that redraws
    would take time from what is measured. Results may be printed to stdout meanwhile.
    """
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with _bar(*columns, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as bar:
        task = bar.add_task("", total=None)

        def show(text: str, done: int, total: int) -> None:
            description = escape(text.translate(CONTROL))
            bar.update(task, description=description, completed=done, total=total, refresh=True)

        yield show


def _bar(*columns: Any, **options: Any) -> Progress:
    from rich.console import Console
    from rich.progress import Progress

    return Progress(*columns, console=Console(stderr=True), transient=True, **options)


def _byte_lines(total: int, label: str) -> OnBytes:
    begin = last = time.monotonic()

    def show(done: int, text: str = "", /) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < LINE_EVERY or not done:
            return
        last = now
        rate = done / (now - begin)
        what, share = text or label, f"{100 * done / max(total, 1):.0f} %"
        notify(
            f"{what}: {decimal_bytes(done)} of {decimal_bytes(total)} ({share}), {decimal_bytes(rate)}/s, "
            f"{duration(max(0.0, total - done) / rate)} left"
        )

    return show
