"""Text on a terminal of any width: lines end between words, never inside one that would fit."""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from typing import TextIO

from pyllamacpu.cli.streams import give_up
from pyllamacpu.progress import CONTROL

_TAB = 8  # columns
_ROW = re.compile(r"\S.*?\S {2,}(?=\S)")  # the first column of a row such as "/help    this list"


def terminal_width(stream: TextIO) -> int:
    """Columns of the terminal behind `stream`, now; those of COLUMNS or 80 where there is none."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError, AttributeError):
        import shutil

        return shutil.get_terminal_size().columns


def columns(text: str) -> int:
    """How many columns `text` takes on a terminal; a tab is counted by the caller."""
    return sum(_char_columns(char) for char in text)


def _char_columns(char: str) -> int:
    if char.isascii():
        return 1
    from prompt_toolkit.utils import get_cwidth  # knows of wide and of combining characters

    return max(get_cwidth(char), 0)


def _breaks_anywhere(char: str) -> bool:
    """True for the characters of scripts that put no spaces between words."""
    return unicodedata.east_asian_width(char) in "WF" and unicodedata.category(char) == "Lo"


class WordWrapper:
    """Text in pieces as it comes; what it gives back can be printed: whole words, on lines that hold them.

    A word is held back until it is known to be whole. One longer than a line begins a new one and is broken.
    """

    def __init__(self, width: int) -> None:
        self.width = max(width, 1)
        self.column = 0
        self._spaces = ""  # that stand before the word
        self._word = ""
        self._long = False  # the word is longer than a line, and its beginning is printed

    def push(self, text: str) -> str:
        """The part of what came so far that can be printed now."""
        return "".join(self._push_char(char) for char in text)

    def flush(self) -> str:
        """What was held back: the text is over, or pauses."""
        out = self._end_word()
        self.column += self._columns_of_spaces()
        out, self._spaces = out + self._spaces, ""
        return out

    def _push_char(self, char: str) -> str:
        if char == "\n":
            out = self._end_word() + "\n"
            self.column, self._spaces = 0, ""
            return out
        if char in " \t":
            out = self._end_word()
            self._spaces += char
            return out
        if self._word and (_breaks_anywhere(char) or _breaks_anywhere(self._word[-1])):
            out = self._end_word()
            self._word = char
            return out
        self._word += char
        if self._long or columns(self._word) > self.width:
            out = self._print_word()
            self._long = True
            return out
        return ""

    def _end_word(self) -> str:
        out = self._print_word() if self._word else ""
        self._long = False
        return out

    def _print_word(self) -> str:
        word, self._word = self._word, ""
        size, gap = columns(word), self._columns_of_spaces()
        if self._long:  # the terminal breaks it
            self.column = self._broken(self.column + size)
            return word
        spaces, self._spaces = self._spaces, ""
        if self.column + gap + size <= self.width:
            self.column += gap + size
            return spaces + word
        if self.column == 0:  # an indentation that leaves no room
            spaces = spaces[: max(self.width - size, 0)]
            self.column = self._broken(len(spaces) + size)
            return spaces + word
        self.column = self._broken(size)
        return "\n" + word

    def _broken(self, size: int) -> int:
        """The column after `size` columns from the left, which the terminal breaks at the edge."""
        return (size - 1) % self.width + 1 if size else 0

    def _columns_of_spaces(self) -> int:
        at = self.column
        for char in self._spaces:
            at += 1 if char == " " else _TAB - at % _TAB
        return at - self.column


def wrap_words(text: str, width: int) -> str:
    """`text` on lines of at most `width` columns; the second column of a row goes on below itself."""
    return "\n".join(_wrap_line(line, width) for line in text.split("\n"))


def say(text: str) -> None:
    """A line on stderr, wrapped where a person reads it, and as far as that stream can be written to."""
    if sys.stderr.isatty():
        text = wrap_words(text.translate(CONTROL), terminal_width(sys.stderr))
    try:
        print(text, file=sys.stderr, flush=True)
    except BrokenPipeError:
        raise
    except OSError:
        give_up(sys.stderr)


def _wrap_line(line: str, width: int) -> str:
    if columns(line) <= width:
        return line
    row = _ROW.match(line)
    indent = row.end() if row and row.end() <= width // 2 else 2 if row else 0
    wrapper = WordWrapper(width - indent)
    if not row or indent == 2:
        lines = (wrapper.push(line) + wrapper.flush()).split("\n")
    else:
        lines = (wrapper.push(line[indent:]) + wrapper.flush()).split("\n")
        lines[0] = line[:indent] + lines[0]
    return ("\n" + " " * indent).join(lines)
