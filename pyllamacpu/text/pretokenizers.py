"""The pre-tokenizers of a tokenizer.json that stand before a Unigram model: how a text is cut into words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial
from typing import Any

import regex

from pyllamacpu.errors import TokenizerError
from pyllamacpu.text.normalizers import MATCH_SECONDS, compiled_pattern
from pyllamacpu.text.unicode_categories import WHITE_SPACE, category, seen_by

PreTokenizer = Callable[[str, bool], list[str]]
"""(text, whether it is the beginning of all) -> its words."""
Parts = Iterable[tuple[str, bool]]
"""Neighbouring parts of a text, and whether each is a match."""
_MAX_DEPTH = 8
_WORDS = regex.compile(r"\w+|[^\w\s]+")


def make_pretokenizer(part: Any, depth: int = 0) -> PreTokenizer:
    """The function of a tokenizer.json's `pre_tokenizer`; None leaves the text whole.

    Raises TokenizerError for one that is not known here, or is damaged.
    """
    if part is None:
        return lambda text, _first: [text]
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "Sequence" and depth < _MAX_DEPTH:
        listed = part.get("pretokenizers")
        if not isinstance(listed, list):
            raise TokenizerError("a pre-tokenizer Sequence without a list")
        if any(isinstance(item, Mapping) and item.get("prepend_scheme") == "first" for item in listed[1:]):
            raise TokenizerError("a Metaspace that prepends to the first word only must come first")
        return partial(_in_turn, [make_pretokenizer(item, depth + 1) for item in listed])
    maker = _MAKERS.get(str(kind))
    if maker is None:
        raise TokenizerError(f"the pre-tokenizer {kind!r:.40} is not supported")
    return maker(part)


def _in_turn(steps: list[PreTokenizer], text: str, first: bool) -> list[str]:
    words = [text]
    for step in steps:
        words = [word for i, part in enumerate(words) for word in step(part, first and i == 0) if word]
    return words


# ---- cutting at matches ----


def cut(parts: Parts, behavior: str) -> list[str]:
    """What becomes of matches. Raises TokenizerError for a behavior that is none."""
    maker = _BEHAVIORS.get(behavior.lower().replace("_", ""))
    if maker is None:
        raise TokenizerError(f"the split behavior {behavior!r:.40} is not known")
    return [part for part in maker(parts) if part]


def _with_previous(parts: Parts) -> list[str]:
    words: list[str] = []
    previous = False
    for text, is_match in parts:
        if is_match and not previous and words:
            words[-1] += text
        else:
            words.append(text)
        previous = is_match
    return words


def _with_next(parts: Parts) -> list[str]:
    words: list[str] = []
    previous = False
    for text, is_match in reversed(list(parts)):
        if is_match and not previous and words:
            words[-1] = text + words[-1]
        else:
            words.append(text)
        previous = is_match
    return words[::-1]


def _contiguous(parts: Parts) -> list[str]:
    words: list[str] = []
    previous = False
    for text, is_match in parts:
        if is_match == previous and words:
            words[-1] += text
        else:
            words.append(text)
        previous = is_match
    return words


_BEHAVIORS: dict[str, Callable[[Parts], list[str]]] = {
    "removed": lambda parts: [text for text, is_match in parts if not is_match],
    "isolated": lambda parts: [text for text, _ in parts],
    "mergedwithprevious": _with_previous,
    "mergedwithnext": _with_next,
    "contiguous": _contiguous,
}


def by_character(text: str, is_match: Callable[[str], bool]) -> Iterator[tuple[str, bool]]:
    """Each character that matches by itself, and the runs of others."""
    start = 0
    for i, character in enumerate(text):
        if is_match(character):
            if start < i:
                yield text[start:i], False
            yield character, True
            start = i + 1
    if start < len(text):
        yield text[start:], False


def by_pattern(text: str, pattern: regex.Pattern[str], invert: bool = False) -> Iterator[tuple[str, bool]]:
    end = 0
    try:
        for match in pattern.finditer(seen_by(pattern, text), timeout=MATCH_SECONDS):
            if match.start() > end:
                yield text[end : match.start()], invert
            yield text[match.start() : match.end()], not invert
            end = match.end()
    except TimeoutError:
        raise TokenizerError(f"the pattern {pattern.pattern!r:.60} takes too long on this text") from None
    if end < len(text):
        yield text[end:], invert


# ---- kinds ----


def _metaspace(part: Mapping[str, Any]) -> PreTokenizer:
    """A visible space in place of each space, also before the text; words begin with it."""
    space = part.get("replacement", "▁")
    scheme = part.get("prepend_scheme", "always" if part.get("add_prefix_space", True) else "never")
    splits = part.get("split", True)
    if not isinstance(space, str) or len(space) != 1 or scheme not in ("always", "first", "never"):
        raise TokenizerError(f"a pre-tokenizer Metaspace with {space!r:.10} and {scheme!r:.10}")

    def metaspace(text: str, first: bool) -> list[str]:
        text = text.replace(" ", space)
        wanted = scheme == "always" or (scheme == "first" and first)
        if text and wanted and not text.startswith(space):
            text = space + text
        if not splits:
            return [text]
        head, *words = text.split(space)
        return ([head] if head else []) + [space + word for word in words]

    return metaspace


def _split(part: Mapping[str, Any]) -> PreTokenizer:
    pattern, behavior = compiled_pattern(part.get("pattern")), str(part.get("behavior"))
    invert = bool(part.get("invert"))
    cut((), behavior)
    return lambda text, _first: cut(by_pattern(text, pattern, invert), behavior)


# Newer than the tables of the library's `Punctuation`, which are Unicode 8's: no marks there (hexadecimal).
_NEWER_MARKS = """
    61d 9fd a76 c77 c84 1b4e-1b4f 1b7d-1b7f 2e43-2e4f 2e52-2e5d 2e60-2e63 10d6e 10ead 10ed0 10f55-10f59
    10f86-10f89 113d4-113d5 113d7-113d8 1144b-1144f 1145a-1145b 1145d 11660-1166c 116b9 1183b 11944-11946
    119e2 11a3f-11a46 11a9a-11a9c 11a9e-11aa2 11b00-11b09 11be1 11c41-11c45 11c70-11c71 11ef7-11ef8
    11f43-11f4f 11fff 12ff1-12ff2 16d6d-16d6f 16e97-16e9a 16fe2 1e5ff 1e95e-1e95f
"""
_NEWER_NUMBERS = frozenset(map(chr, (*range(0x11DE0, 0x11DEA), *range(0x16FF4, 0x16FF7))))
"""`Digits` knows those of Unicode 17."""
_OLD_MARKS = "\u166d\U000111c9"  # which later tables call symbols or letters' parts


@cache
def _newer_marks() -> frozenset[str]:
    ranges = (word.partition("-")[::2] for word in _NEWER_MARKS.split())
    return frozenset(chr(c) for a, b in ranges for c in range(int(a, 16), int(b or a, 16) + 1))


def _is_punctuation(character: str) -> bool:
    if character.isascii():
        return character.isprintable() and not character.isalnum() and character != " "
    is_mark = category(character)[0] == "P" and character not in _newer_marks()
    return is_mark or character in _OLD_MARKS


def _punctuation(part: Mapping[str, Any]) -> PreTokenizer:
    behavior = str(part.get("behavior", "Isolated"))
    cut((), behavior)
    return lambda text, _first: cut(by_character(text, _is_punctuation), behavior)


def _digits(part: Mapping[str, Any]) -> PreTokenizer:
    behavior = "isolated" if part.get("individual_digits") else "contiguous"

    def is_number(character: str) -> bool:
        return category(character)[0] == "N" or character in _NEWER_NUMBERS

    return lambda text, _first: cut(by_character(text, is_number), behavior)


def _at_white_space(text: str, _first: bool) -> list[str]:
    return cut(by_character(text, WHITE_SPACE.__contains__), "removed")


def _words_and_marks(text: str, _first: bool) -> list[str]:
    return cut(by_pattern(text, _WORDS, invert=True), "removed")


_MAKERS: dict[str, Callable[[Mapping[str, Any]], PreTokenizer]] = {
    "Metaspace": _metaspace,
    "Split": _split,
    "Punctuation": _punctuation,
    "Digits": _digits,
    "WhitespaceSplit": lambda _part: _at_white_space,
    "Whitespace": lambda _part: _words_and_marks,
}
