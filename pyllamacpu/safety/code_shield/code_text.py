"""Where the code is in an answer: fenced blocks of Markdown, strings of JSON, or the whole text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import regex

from pyllamacpu.safety.code_shield.issues import Language

# Possessive, so that no text takes more than time in proportion to its length.
_FENCE = regex.compile(r"^[ \t]{0,12}+(`{3,}+|~{3,}+)[ \t]*+([\w+#.-]*+)[^\n`]*+$", regex.MULTILINE)
_QUOTED = regex.compile(r'"((?:[^"\\\n]|\\.)*+)("|\\?\Z)?')  # also what the text ends in
_CUT_ESCAPE = regex.compile(r"\\u[0-9A-Fa-f]{0,3}\Z")
_PYTHON_TAG = "<|python_tag|>"  # before what Llama 3 writes for an interpreter
_NAMES = {
    "c": Language.C, "h": Language.C, "cpp": Language.CPP, "c++": Language.CPP, "cc": Language.CPP,
    "cxx": Language.CPP, "hpp": Language.CPP, "cs": Language.CSHARP, "csharp": Language.CSHARP,
    "c#": Language.CSHARP, "hack": Language.HACK, "java": Language.JAVA, "js": Language.JAVASCRIPT,
    "jsx": Language.JAVASCRIPT, "javascript": Language.JAVASCRIPT, "node": Language.JAVASCRIPT,
    "mjs": Language.JAVASCRIPT, "ts": Language.JAVASCRIPT, "tsx": Language.JAVASCRIPT,
    "typescript": Language.JAVASCRIPT, "kotlin": Language.KOTLIN, "kt": Language.KOTLIN,
    "objc": Language.OBJECTIVE_C, "objective-c": Language.OBJECTIVE_C, "objectivec": Language.OBJECTIVE_C,
    "m": Language.OBJECTIVE_C, "mm": Language.OBJECTIVE_CPP, "objective-c++": Language.OBJECTIVE_CPP,
    "php": Language.PHP, "py": Language.PYTHON, "python": Language.PYTHON, "python3": Language.PYTHON,
    "ipython": Language.PYTHON, "rb": Language.RUBY, "ruby": Language.RUBY, "rs": Language.RUST,
    "rust": Language.RUST, "swift": Language.SWIFT, "xml": Language.XML,
}  # fmt: skip


def language_named(name: str) -> Language | None:
    """By its name, its word in Markdown, or the end of its files."""
    word = name.lower().lstrip(".")
    return _NAMES.get(word) or next((one for one in Language if one.value == word), None)


@dataclass(frozen=True)
class CodePart:
    """Text to be judged. `language` None: not known. `is_prose`: it stands around fenced code. `first_line`
    is where it begins in the whole, from 1. `is_open`: nothing ends it but the end of the whole.
    """

    text: str
    language: Language | None
    first_line: int = 1
    is_prose: bool = False
    is_open: bool = False


def code_parts(text: str, language: Language | None = None) -> list[CodePart]:
    """The parts of an answer; a text of a given language, or without fences, is one part."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace(_PYTHON_TAG, "")
    parts = [CodePart(text, language, is_open=True)] if language is not None else list(_fenced(text))
    return [*parts, *(inner for part in parts for inner in _strings(part))]


def _fenced(text: str) -> Iterator[CodePart]:
    """A fence that nothing closes goes on to the end: more may come."""
    begin, opened, language, lines = 0, "", None, _Lines(text)
    fences = list(_FENCE.finditer(text))
    for fence in fences:
        mark, word = fence[1], fence[2]
        if opened and not (mark.startswith(opened) and not word):
            continue  # within the block
        yield from _part(lines, begin, fence.start(), language, prose=not opened)
        begin = min(fence.end() + 1, len(text))
        language = None if opened else language_named(word)
        opened = "" if opened else mark
    yield from _part(lines, begin, len(text), language, bool(fences) and not opened, is_open=True)


def _part(
    lines: _Lines, begin: int, end: int, language: Language | None, prose: bool, is_open: bool = False
) -> Iterator[CodePart]:
    if (text := lines.text[begin:end]).strip():
        yield CodePart(text, language, lines.number(begin), prose, is_open)


class _Lines:
    """The numbers of lines, from 1, for places in the order of the text."""

    def __init__(self, text: str, first: int = 1) -> None:
        self.text, self._number, self._place = text, first, 0

    def number(self, place: int) -> int:
        self._number += self.text.count("\n", self._place, place)
        self._place = place
        return self._number


def _strings(part: CodePart) -> Iterator[CodePart]:
    """What JSON strings say: code is an argument of tools' calls. A string that is not closed at the end of
    the text is one, too: more may come, or the answer is cut there.
    """
    lines = _Lines(part.text, part.first_line)
    for begin, raw, text in quoted_texts(part.text):
        if "\\" in raw:  # else the text itself has it
            is_open = part.is_open and begin + len(raw) + 2 > len(part.text)
            yield CodePart(text, None, lines.number(begin), is_open=is_open)


def quoted_texts(text: str) -> Iterator[tuple[int, str, str]]:
    """(where it begins, as it is written, what it says) of each JSON string in a text, and of one that the
    text ends in.
    """
    for found in _QUOTED.finditer(text):
        if found[2] is None:
            continue
        raw = found[1] if found[2] == '"' else _CUT_ESCAPE.sub("", found[1])
        try:
            yield found.start(), raw, json.loads(f'"{raw}"')
        except ValueError:
            continue
