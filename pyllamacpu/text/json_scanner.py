"""JSON character by character: how far a value goes, and where a text stops being one (RFC 8259).

Stricter than the format in what no reader takes safely: numbers beyond a double's range or of more than 400
characters, halves of surrogate pairs, and more than 100 levels.
"""

from __future__ import annotations

import json
import math
import re
from typing import Literal

SPACE = " \t\n\r"
_MAX_DEPTH = 100
_MAX_NUMBER = 400  # characters; int() refuses to read thousands of digits
_LITERALS = ("true", "false", "null")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_NUMBER_CHARACTERS = frozenset("0123456789+-.eE")
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
_ESCAPE_BEGUN = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{0,4})?')

_Expected = Literal["value", "first item", "first key", "key", "colon", "after", "string", "word", "nothing"]


class JsonScanner:
    """Follows one value. Characters go in one by one; a number by itself ends with the one behind it."""

    def __init__(self) -> None:
        self._closers: list[str] = []  # of the containers that are open
        self._expected: _Expected = "value"
        self._is_key = False  # of the string that is open
        self._token = ""  # an escape or a word that is not whole yet
        self._high = False  # the last character was the first half of a surrogate pair

    @property
    def is_whole(self) -> bool:
        return self._expected == "nothing"

    def push(self, c: str) -> bool:
        """Whether the value goes on with `c`, or is followed by white space. Once false, that is all."""
        if self._expected == "string":
            return self._in_string(c)
        if self._expected == "word":
            if c in _NUMBER_CHARACTERS or c.isalpha():
                return self._in_word(c)
            if not self._end_word() or not self._closers:
                return False
        if c in SPACE:
            return True
        return self._structure(c)

    def _structure(self, c: str) -> bool:
        """A character outside strings and words."""
        expected = self._expected
        if expected == "nothing":
            return False
        if expected == "colon":
            self._expected = "value"
            return c == ":"
        if expected == "after":
            if c != ",":
                return self._close(c)
            self._expected = "key" if self._closers[-1] == "}" else "value"
            return True
        if expected in ("key", "first key"):
            self._is_key, self._expected = True, "string"
            return c == '"' or (expected == "first key" and self._close(c))
        if expected == "first item" and c == "]":
            return self._close(c)
        return self._begin(c)

    def _begin(self, c: str) -> bool:
        """The first character of a value."""
        if c in "{[":
            self._closers.append("}" if c == "{" else "]")
            self._expected = "first key" if c == "{" else "first item"
            return len(self._closers) <= _MAX_DEPTH
        if c == '"':
            self._is_key, self._expected = False, "string"
            return True
        self._expected = "word"
        return self._in_word(c)

    def _close(self, c: str) -> bool:
        if c != self._closers[-1]:
            return False
        self._closers.pop()
        self._end_value()
        return True

    def _end_value(self) -> None:
        self._expected = "after" if self._closers else "nothing"

    def _in_word(self, c: str) -> bool:
        """A number, true, false or null."""
        self._token += c
        if self._token in _LITERALS:
            self._token = ""
            self._end_value()
            return True
        if any(word.startswith(self._token) for word in _LITERALS):
            return True
        first = self._token[0]
        return first in "-0123456789" and c in _NUMBER_CHARACTERS and len(self._token) <= _MAX_NUMBER

    def _end_word(self) -> bool:
        number, self._token = self._token, ""
        fits = _NUMBER.fullmatch(number) is not None and math.isfinite(float(number))
        if fits:
            self._end_value()
        return fits

    def _in_string(self, c: str) -> bool:
        if self._token:
            return self._in_escape(c)
        if c == "\\":
            self._token = c
            return True
        if self._high or c < " " or "\ud800" <= c <= "\udfff":
            return False
        if c == '"':
            if self._is_key:
                self._expected = "colon"
            else:
                self._end_value()
        return True

    def _in_escape(self, c: str) -> bool:
        self._token += c
        if _ESCAPE.fullmatch(self._token):
            unit = ord(json.loads(f'"{self._token}"'))
            self._token = ""
            is_high, is_low = 0xD800 <= unit < 0xDC00, 0xDC00 <= unit < 0xE000
            fits = is_low == self._high
            self._high = is_high
            return fits
        return _ESCAPE_BEGUN.fullmatch(self._token) is not None


def is_json_object(text: str) -> bool:
    """Whether `text` is one object, with white space around it at most."""
    scanner = JsonScanner()
    stripped = text.strip(SPACE)
    return stripped[:1] == "{" and all(map(scanner.push, stripped)) and scanner.is_whole
