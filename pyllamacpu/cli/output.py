"""How a chat looks: plain text for files and pipes, dim lines and a progress line for terminals."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from typing import TextIO

from pyllamacpu.cli.commands import usage_text
from pyllamacpu.cli.session import Event, Finished, Notice, Text
from pyllamacpu.progress import StatusLine, is_terminal

_PROGRESS_AFTER = 0.5  # seconds of reading a prompt until that is worth a line
_CONTROL = {code: "�" for code in [*range(32), *range(127, 160)] if chr(code) not in "\n\t"}
"""Control characters, which must not reach a terminal from a model: they could move its cursor or worse."""


class Screen:
    """Prints a chat on `out`; notes and progress go to `out` on a terminal, otherwise to stderr."""

    def __init__(self, out: TextIO | None = None) -> None:
        self.out = sys.stdout if out is None else out
        self.terminal = is_terminal(self.out)
        self.colour = self.terminal and "NO_COLOR" not in os.environ
        self._began = 0.0  # when the prompt began to be read, by time.monotonic
        self._line = StatusLine(self.out)

    def note(self, text: str) -> None:
        """Say something that is not part of an answer."""
        self._line.clear()
        if self.terminal:
            print(f"\x1b[2m{text}\x1b[0m" if self.colour else text, file=self.out, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def error(self, text: str) -> None:
        """Say on one line what went wrong."""
        self._line.clear()
        print("error: " + " ".join(text.split()), file=sys.stderr, flush=True)

    def on_prompt(self, done: int, total: int) -> None:
        """Show how much of a long prompt is read; on a terminal only, and gone when the answer begins."""
        if not self.terminal:
            return
        now = time.monotonic()
        if not self._began or done == 0:
            self._began = self._began or now
        if done < total and now - self._began >= _PROGRESS_AFTER:
            self._line.show(f"reading the prompt: {done} of {total} tokens")

    def answer(self, events: Iterator[Event], stats: bool = True) -> None:
        """Print an answer as it comes. KeyboardInterrupt passes through after the answer has been closed."""
        self._began, at_line_start = time.monotonic(), True
        try:
            for event in events:
                if isinstance(event, Text):
                    self.text(event.text)
                    at_line_start = event.text.endswith("\n")
                elif isinstance(event, Notice):
                    self._break_line(at_line_start)
                    self.note(f"[{event.text}]")
                    at_line_start = True
                elif isinstance(event, Finished):
                    self._break_line(at_line_start)
                    at_line_start = True
                    if stats:
                        self.note(usage_text(event.usage))
        except BaseException:
            self._line.clear()
            if self.terminal:
                self._break_line(at_line_start)
            raise
        finally:
            close = getattr(events, "close", None)
            if close:
                close()

    def text(self, text: str) -> None:
        """Print a piece of an answer."""
        self._line.clear()
        self.out.write(text.translate(_CONTROL) if self.terminal else text)
        self.out.flush()

    def _break_line(self, at_line_start: bool) -> None:
        if not at_line_start:
            self.out.write("\n")
            self.out.flush()
