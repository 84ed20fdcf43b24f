"""Reads GBNF, llama.cpp's notation of grammars
(https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md): rules `name ::= ...` of literals,
character classes, `.`, other rules, groups, alternatives and repeats.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

from pyllamacpu.errors import OptionError

Ranges = tuple[tuple[int, int], ...]  # of code points, both ends included

MAX_REPEATS = 10_000  # llama.cpp allows 2000
MAX_NESTING = 100  # of groups
_LAST = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)  # no text has them
_RULE = re.compile(r"([A-Za-z0-9_-]+)[ \t]*(?:::=)")
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_BLANK = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_BLANK_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_COUNT = re.compile(r"\{[ \t]*(\d*)[ \t]*(,?)[ \t]*(\d*)[ \t]*\}")
_HEX = {"x": 2, "u": 4, "U": 8}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


@dataclass(frozen=True)
class Chars:
    """One character of these."""

    ranges: Ranges


@dataclass(frozen=True)
class Sequence:
    parts: tuple[Expression, ...]


@dataclass(frozen=True)
class Choice:
    parts: tuple[Expression, ...]


@dataclass(frozen=True)
class Repeat:
    part: Expression
    least: int
    most: int | None  # None: any number


@dataclass(frozen=True)
class Reference:
    name: str


Expression = Chars | Sequence | Choice | Repeat | Reference

ANY = Chars(((1, _SURROGATES[0] - 1), (_SURROGATES[1] + 1, _LAST)))  # NUL, as for llama.cpp, only if named


def parse_gbnf(source: str) -> dict[str, Expression]:
    """The rules by name; a later rule of the same name takes the place of an earlier one. Raises OptionError
    with the line of what is wrong.
    """
    rules = _Parser(source).rules()
    if "root" not in rules:
        raise OptionError("there is no rule called root")
    return rules


def united(ranges: Ranges) -> Ranges:
    """In order, without overlaps and surrogates."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        for low, high in ((first, min(last, _SURROGATES[0] - 1)), (max(first, _SURROGATES[1] + 1), last)):
            if low > high:
                continue
            if found and low <= found[-1][1] + 1:
                found[-1] = (found[-1][0], max(found[-1][1], high))
            else:
                found.append((low, high))
    return tuple(found)


def _others(ranges: Ranges) -> Ranges:
    """All characters but these (and NUL)."""
    start, found = 1, []
    for low, high in united(ranges):
        found.append((start, low - 1))
        start = high + 1
    return united((*((a, b) for a, b in found if a <= b), *(((start, _LAST),) if start <= _LAST else ())))


class _Parser:
    """A cursor in the text of a grammar."""

    def __init__(self, source: str) -> None:
        self._source, self._at = source, 0
        self._depth = 0
        self._used: dict[str, int] = {}  # where a rule is named first

    def rules(self) -> dict[str, Expression]:
        found: dict[str, Expression] = {}
        self._skip(_BLANK_LINES)
        while self._at < len(self._source):
            if (match := _RULE.match(self._source, self._at)) is None:
                self._fail("expected `name ::=`")
            self._at = match.end()
            self._skip(_BLANK_LINES)
            found[match[1]] = self._choice(nested=False)
            if self._peek() not in ("\r", "\n", ""):
                self._fail(f"{self._peek()!r} is not expected here")
            self._skip(_BLANK_LINES)
        for name, at in self._used.items():
            if name not in found:
                self._at = at
                self._fail(f"there is no rule called {name!r:.80}")
        return found

    def _fail(self, message: str) -> NoReturn:
        raise OptionError(f"line {self._source.count(chr(10), 0, self._at) + 1}: {message}")

    def _peek(self) -> str:
        return self._source[self._at : self._at + 1]

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self._source, self._at)
        assert match is not None
        self._at = match.end()

    def _space(self, nested: bool) -> None:
        """Over blanks; over the end of a line where the rule goes on after it, which llama.cpp allows in
        parentheses only: here, wherever no other rule begins.
        """
        self._skip(_BLANK_LINES if nested else _BLANK)
        if nested or self._peek() not in ("\r", "\n"):
            return
        line = self._at
        self._skip(_BLANK_LINES)
        if self._at == len(self._source) or _RULE.match(self._source, self._at):
            self._at = line

    def _choice(self, nested: bool) -> Expression:
        parts = [self._sequence(nested)]
        while self._peek() == "|":
            self._at += 1
            self._skip(_BLANK_LINES)
            parts.append(self._sequence(nested))
        return parts[0] if len(parts) == 1 else Choice(tuple(parts))

    def _sequence(self, nested: bool) -> Expression:
        parts: list[Expression] = []
        while (c := self._peek()) and c not in "|)\r\n":
            if c in "*+?{":
                if not parts:
                    self._fail(f"{c!r} repeats nothing")
                parts[-1] = self._repeat(parts[-1])
            else:
                parts.append(self._item(c))
            self._space(nested)
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def _item(self, c: str) -> Expression:
        if c == '"':
            return self._literal()
        if c == "[":
            return self._class()
        if c == "(":
            return self._group()
        if match := _NAME.match(self._source, self._at):
            self._used.setdefault(match[0], self._at)
            self._at = match.end()
            return Reference(match[0])
        if c in "<!":
            self._fail("tokens (`<...>`) cannot be enforced; write their text as a literal")
        if c != ".":
            self._fail(f"{c!r} is not expected here")
        self._at += 1
        return ANY

    def _group(self) -> Expression:
        self._depth += 1
        if self._depth > MAX_NESTING:
            self._fail(f"groups are nested more than {MAX_NESTING} deep")
        self._at += 1
        self._skip(_BLANK_LINES)
        found = self._choice(nested=True)
        if self._peek() != ")":
            self._fail("a group has no `)`")
        self._at += 1
        self._depth -= 1
        return found

    def _repeat(self, part: Expression) -> Expression:
        c = self._peek()
        if c != "{":
            self._at += 1
            return Repeat(part, 1 if c == "+" else 0, 1 if c == "?" else None)
        match = _COUNT.match(self._source, self._at)
        if match is None or not (match[1] or match[3]) or (match[3] and not match[2]):
            self._fail("repeats are `{m}`, `{m,}`, `{,n}` or `{m,n}`")
        least = int(match[1][:9] or "0")
        most = int(match[3][:9]) if match[3] else (None if match[2] else least)
        if max(least, most or 0) > MAX_REPEATS:
            self._fail(f"it repeats a part more than {MAX_REPEATS} times, which is too large")
        if most is not None and most < least:
            self._fail(f"{match[0]}: the least is more than the most")
        self._at = match.end()
        return Repeat(part, least, most)

    def _literal(self) -> Expression:
        self._at += 1
        found: list[Expression] = []
        while self._peek() != '"':
            if not self._peek():
                self._fail("a literal has no closing quote")
            code = self._character()
            found.append(Chars(united(((code, code),))))
        self._at += 1
        return found[0] if len(found) == 1 else Sequence(tuple(found))

    def _class(self) -> Expression:
        self._at += 1
        if is_negative := self._peek() == "^":
            self._at += 1
        found: list[tuple[int, int]] = []
        while self._peek() != "]":
            if not self._peek():
                self._fail("a character class has no `]`")
            first = last = self._character()
            if self._peek() == "-" and self._source[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                last = self._character()
                if last < first:
                    self._fail(f"the range {chr(first)!r} to {chr(last)!r} is empty")
            found.append((first, last))
        if not found:
            self._fail("a character class is empty")
        self._at += 1
        return Chars(_others(tuple(found)) if is_negative else united(tuple(found)))

    def _character(self) -> int:
        """The code point of one character or escape."""
        c = self._peek()
        self._at += 1
        if c != "\\":
            return ord(c)
        c = self._peek()
        if digits := _HEX.get(c):
            text = self._source[self._at + 1 : self._at + 1 + digits]
            if not re.fullmatch(rf"[0-9A-Fa-f]{{{digits}}}", text) or int(text, 16) > _LAST:
                self._fail(f"`\\{c}` needs {digits} hexadecimal digits of a character")
            self._at += 1 + digits
            return int(text, 16)
        if not c or (c.isalnum() and c not in _ESCAPES):
            self._fail(f"the escape `\\{c}` is not known")
        self._at += 1
        return ord(_ESCAPES.get(c, c))
