"""Answers as Markdown on a terminal: each paragraph, list or code block is drawn when it is whole."""

from __future__ import annotations

import re
from typing import TextIO

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


class MarkdownBlocks:
    """Splits a text that comes in pieces at the blank lines that are not inside a fenced code block."""

    def __init__(self) -> None:
        self._text = ""

    def push(self, text: str) -> list[str]:
        """The blocks that are whole now."""
        self._text += text
        *blocks, self._text = _split(self._text)
        return blocks

    def flush(self) -> str:
        """The last block, whole or not; the empty string without one."""
        rest, self._text = self._text, ""
        return rest if rest.strip() else ""

    @property
    def tail(self) -> str:
        """The line that is being written."""
        return self._text.rsplit("\n", 1)[-1]


def _split(text: str) -> list[str]:
    """Blocks of `text`; the last is the one that may go on."""
    blocks, block, fence = [], "", ""
    *lines, last = text.split("\n")
    for line in lines:
        if mark := _FENCE.match(line):
            fence = "" if fence and line.strip().startswith(fence) else fence or mark[1]
        if line.strip() or fence or not block:
            block += line + "\n" if line.strip() or block else ""
        else:
            blocks.append(block)
            block = ""
    return [*blocks, block + last]


def render_block(block: str, stream: TextIO, width: int) -> None:
    """Draw one block of Markdown, without empty lines around it.

    Links are shown, not made: their address is the model's.
    """
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console(file=stream, width=width, highlight=False, force_terminal=True)
    with console.capture() as capture:
        console.print(Markdown(block, hyperlinks=False))
    lines = [line.rstrip() for line in capture.get().split("\n")]
    shown = [at for at, line in enumerate(lines) if line]
    stream.write("\n".join(lines[shown[0] : shown[-1] + 1]) + "\n" if shown else "")
