"""Python code as a syntax tree, also where it stands in prose, is cut off or has faults.

What is long is parsed in parts, and what cannot be parsed as a whole block by block, then line by line; lines
that are known to be Python and still have faults (Python 2, say), and lines that are too long for the parser,
are judged by the calls in them.
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Iterator

import regex

from pyllamacpu.errors import PyllamacpuError

_FILE = "<code shield>"
_PROMPT = re.compile(r"^[ \t]*(?:>>>|\.\.\.) ?", re.MULTILINE)  # of an interactive session
_PRINT = re.compile(r"print\s+([^\s=(].*)")  # of Python 2
_WORD = regex.compile(r"[A-Za-z_][\w.]*+\s*+(\()?")  # whole words: a long one is read once
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_MAX_PART = 1 << 15  # characters that are parsed at once: other threads wait for that
_MAX_CALL = 2000  # characters of a call in a line with faults
_MAX_CALL_CHARS = 2_000_000  # of all such calls


class CodeTooLarge(PyllamacpuError):
    """Code that cannot be judged within bounds."""


def parse_python(text: str, calls_too: bool) -> ast.Module:
    """All that can be parsed, with the lines of `text`. `calls_too`: of lines with faults, the calls. Raises
    CodeTooLarge.
    """
    text = textwrap.dedent(text.replace("\0", " ").expandtabs(8))
    if ">>>" in text:
        text = _PROMPT.sub("", text)
    return _Parser(calls_too).parse(text)


class _TooDeep(Exception):
    """More than Python's parser takes: a long line of prose is enough."""


def _parse(text: str) -> ast.Module | None:
    """None for what is not Python. Raises _TooDeep."""
    warnings.filterwarnings("ignore", module=re.escape(_FILE))  # of strange escapes in others' code
    try:
        return ast.parse(text, _FILE)
    except (SyntaxError, ValueError):  # ValueError: half a surrogate pair
        return None
    except (RecursionError, MemoryError):
        raise _TooDeep from None


class _Parser:
    def __init__(self, calls_too: bool) -> None:
        self._calls_too = calls_too
        self._n_chars = 0  # of calls so far

    def parse(self, text: str) -> ast.Module:
        return ast.Module([node for first, part in _parts(text) for node in self._part(part, first)], [])

    def _part(self, part: str, first: int) -> list[ast.stmt]:
        """Of several blocks, as a whole or block by block."""
        try:
            if (whole := _parse(part)) is not None:
                return _located(whole, first)
        except _TooDeep:
            pass  # its blocks may not be
        return [node for i, block in _blocks(part) for node in self._block(block, first + i - 1)]

    def _block(self, block: str, first: int) -> list[ast.stmt]:
        try:
            tree = _parse(block) or _parse(_closed(block))
        except _TooDeep:
            tree = None
        if tree is not None:
            return _located(tree, first)
        return [
            node for i, line in enumerate(block.split("\n"), first) for node in self._line(line.strip(), i)
        ]

    def _line(self, line: str, number: int) -> list[ast.stmt]:
        if not line or line.startswith("#"):
            return []
        try:
            tree = _parse(line) or (_parse(f"{line} pass") if line.endswith(":") else None)
            if tree is None and (old := _PRINT.match(line)):
                tree = _parse(f"print({old[1]})")
        except _TooDeep:
            return self._calls(line, number)
        if tree is not None:
            return _located(tree, number)
        return self._calls(line, number) if self._calls_too else []

    def _calls(self, line: str, number: int) -> list[ast.stmt]:
        body: list[ast.stmt] = []
        for found in _WORD.finditer(line):
            if found[1] is None:
                continue
            call = _closed(line[found.start() : found.start() + _MAX_CALL], only_first=True)
            self._n_chars += len(call)
            if self._n_chars > _MAX_CALL_CHARS:
                raise CodeTooLarge("Python code with too many calls in lines with faults")
            try:
                tree = _parse(call)
            except _TooDeep:
                raise CodeTooLarge("Python code that is nested too deeply to be judged") from None
            if tree is not None:
                body += _located(tree, number)
        return body


def _located(tree: ast.Module, first_line: int) -> list[ast.stmt]:
    ast.increment_lineno(tree, first_line - 1)
    return tree.body


def _blocks(text: str) -> Iterator[tuple[int, str]]:
    """(first line, text): a line that is not indented, and those behind it that are."""
    lines = text.split("\n")
    first = 0
    for i in range(1, len(lines) + 1):
        if i == len(lines) or (lines[i] and not lines[i][0].isspace() and lines[i][0] not in ")]}"):
            yield first + 1, "\n".join(lines[first:i])
            first = i


def _parts(text: str) -> Iterator[tuple[int, str]]:
    """(first line, text): as many blocks as _MAX_PART holds, or one."""
    first, listed, size = 1, list[str](), 0
    for i, block in _blocks(text):
        if listed and size + len(block) > _MAX_PART:
            yield first, "\n".join(listed)
            first, listed, size = i, [], 0
        listed.append(block)
        size += len(block) + 1
    yield first, "\n".join(listed)


def _closed(code: str, only_first: bool = False) -> str:
    """With the brackets and the string closed that are open at its end; or only up to the end of its first
    bracket.
    """
    waiting: list[str] = []
    quote, i = "", 0
    while i < len(code):
        c = code[i]
        if quote:
            if c == "\\":
                i += 1
            elif code.startswith(quote, i):
                i += len(quote) - 1
                quote = ""
        elif c in "\"'":
            quote = c * 3 if code.startswith(c * 3, i) else c
            i += len(quote) - 1
        elif c == "#":
            line_end = code.find("\n", i)
            i = len(code) if line_end < 0 else line_end
        elif c in _CLOSING:
            waiting.append(_CLOSING[c])
        elif waiting and c == waiting[-1]:
            waiting.pop()
            if only_first and not waiting:
                return code[: i + 1]
        i += 1
    code = code.rstrip().rstrip("\\") if not quote else code
    return code + quote + "".join(reversed(waiting))
