"""How a chat looks: plain text for files and pipes, dim lines and a progress line for terminals."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from typing import TextIO

from pyllamacpu.cli.commands import usage_text
from pyllamacpu.cli.line_reader import typed_reply
from pyllamacpu.cli.markdown import MarkdownBlocks, render_block
from pyllamacpu.cli.session import Event, Finished, Notice, Question, Text
from pyllamacpu.cli.usage import Usage
from pyllamacpu.cli.wrapping import WordWrapper, say, terminal_width, wrap_words
from pyllamacpu.progress import CONTROL, StatusLine, is_terminal

_PROGRESS_AFTER = 0.5  # seconds of reading a prompt until that is worth a line


class Screen:
    """Prints a chat on `out`; notes and progress go to `out` on a terminal, otherwise to stderr.

    Where a person reads, lines end between words; on a terminal that can be drawn on, `markdown` draws the
    answers as what they mean.
    """

    def __init__(self, out: TextIO | None = None, markdown: bool = False) -> None:
        self.out = sys.stdout if out is None else out
        self.terminal = is_terminal(self.out)
        self.seen = self.out.isatty()  # by a person, on whatever terminal
        self._wrapper: WordWrapper | None = None  # of the answer that is being printed
        self._blocks = MarkdownBlocks() if markdown and self.terminal else None
        self.colour = self.terminal and "NO_COLOR" not in os.environ
        self._began = 0.0  # when the prompt began to be read, by time.monotonic
        self._line = StatusLine(self.out)

    def note(self, text: str) -> None:
        """Say something that is not part of an answer."""
        self._line.clear()
        text = text.translate(CONTROL)
        if self.terminal:
            text = wrap_words(text, terminal_width(self.out))
            print(f"\x1b[2m{text}\x1b[0m" if self.colour else text, file=self.out, flush=True)
        else:
            say(text)

    def error(self, text: str) -> None:
        """Say on one line what went wrong."""
        self._line.clear()
        say("error: " + " ".join(text.split()).translate(CONTROL))

    def on_image(self) -> None:
        """Show that an image is looked at, which may take long; on a terminal only."""
        if self.terminal:
            self._line.show("looking at the image")

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
                    at_line_start = event.text.endswith("\n") or self._blocks is not None
                elif isinstance(event, Notice):
                    self._break_line(at_line_start)
                    self.note(f"[{event.text}]")
                    at_line_start = True
                elif isinstance(event, Question):
                    self._break_line(at_line_start)
                    event.reply = self.ask(event.text, event.choices)
                    at_line_start = True
                elif isinstance(event, Finished):
                    self._break_line(at_line_start)
                    at_line_start = True
                    if stats and event.usage != Usage(n_prompt=event.usage.n_prompt):  # a blocked message's
                        self.note(usage_text(event.usage))
            self.end_text()
        except BaseException:
            self._line.clear()
            if self.terminal:
                self._break_line(at_line_start)
            raise
        finally:
            close = getattr(events, "close", None)
            if close:
                close()

    def ask(self, question: str, choices: str) -> str:
        """The line that a person types at a question; empty at the end of input."""
        self.note(f"[{question}]")
        return typed_reply(choices)

    def text(self, text: str) -> None:
        """Print a piece of an answer."""
        if self._blocks is not None:
            self._markdown(text.translate(CONTROL))
            return
        self._line.clear()
        if self.seen:
            text = text.translate(CONTROL)
            width = terminal_width(self.out)
            if self._wrapper is None:
                self._wrapper = WordWrapper(width)
            self._wrapper.width = width  # which may have changed meanwhile
            text = self._wrapper.push(text)
        self.out.write(text)
        self.out.flush()

    def _markdown(self, text: str) -> None:
        """Draw the blocks that are whole now; of the next one the line that is being written is shown."""
        assert self._blocks is not None
        for block in self._blocks.push(text):
            self._line.clear()
            render_block(block, self.out, terminal_width(self.out))
            self.out.write("\n")
        self._line.show(self._blocks.tail.replace("\t", " "))

    def end_text(self) -> None:
        """Print what was held back of the answer: it is over, or something else is to be printed."""
        self._line.clear()
        if self._wrapper is not None:
            self.out.write(self._wrapper.flush())
            self._wrapper = None
        if self._blocks is not None and (rest := self._blocks.flush()):
            render_block(rest, self.out, terminal_width(self.out))
        self.out.flush()

    def _break_line(self, at_line_start: bool) -> None:
        self.end_text()
        if not at_line_start:
            self.out.write("\n")
            self.out.flush()
