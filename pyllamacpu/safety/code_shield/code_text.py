"""Where the code is in an answer: fenced blocks of Markdown, strings of JSON, or the whole text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import regex

from pyllamacpu.safety.code_shield.issues import Language

# Possessive, so that no text takes more than time in proportion to its length. Before a fence stand marks of
# lists and quotes, and what looks like nothing; what follows backticks in their line holds none.
_FENCE = regex.compile(
    r"^(?P<before>(?:[^\S\n]|\p{Cf}|>|(?:[-*+]|\d{1,9}+[.)])(?=[^\S\n]))*+)"
    r"(?P<mark>`{3,}+(?=[^\n`]*+$)|~{3,}+)(?P<info>[^\n]*+)$",
    regex.MULTILINE,
)
_WORD = regex.compile(r"[ \t{]*+([\w+#.-]*+)")  # of a fence's line: the language
_MOST_DEEPER = 3  # columns that a closing fence may stand deeper than the opening one
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


@dataclass(frozen=True)
class _Fence:
    """A line of backticks or tildes. `begin`, `end`: of the line; `column`, where the mark stands in it."""

    begin: int
    end: int
    mark: str
    language: Language | None
    is_bare: bool  # nothing follows the mark
    column: int
    n_quotes: int  # marks of quotes before it
    is_item: bool  # the mark of a list's item stands before it

    def is_closed_by(self, other: _Fence) -> bool:
        """As CommonMark has it: anything else is a line of the code."""
        return (
            other.is_bare
            and other.mark.startswith(self.mark)
            and not other.is_item
            and other.n_quotes <= self.n_quotes
            and other.column <= self.column + _MOST_DEEPER
        )


def _fences(text: str) -> Iterator[_Fence]:
    for found in _FENCE.finditer(text):
        before, mark, info = found["before"], found["mark"], found["info"]
        yield _Fence(
            found.start(),
            min(found.end() + 1, len(text)),
            mark,
            language_named(_WORD.match(info)[1]),
            not info.strip(" \t"),
            len(before.expandtabs(4)),
            before.count(">"),
            any(c in "-*+.)" for c in before),
        )


def _fenced(text: str) -> Iterator[CodePart]:
    """A fence that nothing closes goes on to the end, or to that of its quote: more may come."""
    begin, opened, lines = 0, None, _Lines(text)
    inside: list[_Fence] = []  # of other languages, within the block
    fences = list(_fences(text))
    for fence in fences:
        since = inside[-1].begin if inside else begin
        if opened and (end := _end_of_quote(text, opened, since, fence)) is not None:
            yield from _block(lines, opened, end, inside)
            begin, opened, inside = end, None, []
        if opened and not opened.is_closed_by(fence):
            inside.append(fence)
            continue
        if opened:
            yield from _block(lines, opened, fence.begin, inside)
        else:
            yield from _part(lines, begin, fence.begin, None, prose=True)
        begin, opened, inside = fence.end, None if opened else fence, []
    if opened:
        end = _end_of_quote(text, opened, inside[-1].begin if inside else begin)
        yield from _block(lines, opened, len(text) if end is None else end, inside, is_open=end is None)
        if end is None:
            return
        begin = end
    yield from _part(lines, begin, len(text), None, prose=bool(fences), is_open=True)


def _end_of_quote(text: str, opened: _Fence, since: int, fence: _Fence | None = None) -> int | None:
    """Where the quote ends that a block stands in: with it, the block. None: not from `since` to `fence`, or
    to the end.
    """
    if not opened.n_quotes:
        return None
    outside = regex.compile(rf"^(?!(?:[^\S\n]*+>){{{opened.n_quotes}}})", regex.MULTILINE)
    limit = len(text) if fence is None else fence.begin
    found = outside.search(text, since, limit)
    if found is not None and found.start() < limit:
        return int(found.start())
    return fence.begin if fence is not None and fence.n_quotes < opened.n_quotes else None


def _block(
    lines: _Lines, opened: _Fence, end: int, inside: list[_Fence], is_open: bool = False
) -> Iterator[CodePart]:
    """The code behind a fence. Blocks that begin within it, as nothing has closed it, are judged too as what
    they say.
    """
    yield from _part(lines, opened.end, end, opened.language, False, is_open, opened.n_quotes)
    ends = [*(fence.begin for fence in inside[1:]), end]
    for fence, its_end in zip(inside, ends, strict=False):
        if fence.language not in (None, opened.language):
            yield from _part(lines, fence.end, its_end, fence.language, False, is_open, fence.n_quotes)


def _part(
    lines: _Lines,
    begin: int,
    end: int,
    language: Language | None,
    prose: bool,
    is_open: bool = False,
    n_quotes: int = 0,
) -> Iterator[CodePart]:
    """Without the marks of the quotes that it stands in."""
    text = lines.text[begin:end]
    if n_quotes:
        text = regex.sub(rf"^(?:[^\S\n]*+>){{{n_quotes}}} ?", "", text, flags=regex.MULTILINE)
    if text.strip():
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
