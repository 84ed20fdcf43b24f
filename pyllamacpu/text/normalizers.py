"""The normalizers of a tokenizer.json: what is done to a text before it is cut.

Each gives what the tokenizers library gives, whatever version of Unicode Python has. (Graphemes are
those of the installed `regex`: in 2026 the library's are of the same version of Unicode, 17.)
"""

from __future__ import annotations

import struct
import unicodedata
from collections.abc import Callable, Mapping
from functools import cache, lru_cache, partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import regex

from pyllamacpu.errors import TokenizerError
from pyllamacpu.text.unicode_categories import WHITE_SPACE, category, newer_than_9, seen_by

Normalizer = Callable[[str], str]
Maker = Callable[[Mapping[str, Any], bytes | None], Normalizer]
"""(the part of the JSON, the map of `Precompiled`) -> its function."""
MATCH_SECONDS = 5.0
"""For a pattern of the file on one text."""
_MAX_DEPTH = 8
_MAX_EXPANDED = 1 << 18
"""Characters of a pattern: `regex` writes counted repeats out, with about 300 bytes for each."""
_REPEAT = regex.compile(r"\{[\d\s,]+\}")
_PATTERN_PART = regex.compile(r"\\.|\[:\^?\w+:\]|\[\^?\]?|.", regex.DOTALL)
_ONIGURUMA = {  # what Oniguruma means, in brackets
    r"\w": r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}",
    r"\h": "0-9A-Fa-f",
    "[:alnum:]": r"\p{Alphabetic}\p{Nd}",
}
_ALONE = "²³¹¼-¾"  # of `\w` only where it stands alone
_NUMBER = regex.compile(r"[1-9]\d*")
# Capitals that Unicode got with 14 to 17, and where their small letters begin (hexadecimal).
_NEWER_CAPITALS = """
    1c89>1c8a 2c2f>2c5f a7c0>a7c1 a7cb>264 a7cc>a7cd a7ce>a7cf a7d0>a7d1 a7d2>a7d3 a7d4>a7d5 a7d6>a7d7
    a7d8>a7d9 a7da>a7db a7dc>19b 10570-1057a>10597 1057c-1058a>105a3 1058c-10592>105b3 10594-10595>105bb
    10d50-10d65>10d70 16ea0-16eb8>16ebb
"""
_GRAPHEME = regex.compile(r"\X")
_WHOLE_GRAPHEME = 6  # bytes from which a grapheme is looked up character by character
_MAX_CACHED = 1 << 16


def make_normalizer(part: Any, charsmap: bytes | None, depth: int = 0) -> Normalizer:
    """The function of a tokenizer.json's `normalizer`; None changes nothing. charsmap: of `Precompiled`.

    Raises TokenizerError for one that is not known here, or is damaged.
    """
    if part is None:
        return str
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "Sequence" and depth < _MAX_DEPTH:
        listed = part.get("normalizers")
        if not isinstance(listed, list):
            raise TokenizerError("a normalizer Sequence without a list")
        return partial(_in_turn, [make_normalizer(item, charsmap, depth + 1) for item in listed])
    maker = _MAKERS.get(str(kind))
    if maker is None:
        raise TokenizerError(f"the normalizer {kind!r:.40} is not supported")
    return maker(part, charsmap)


def _in_turn(normalizers: list[Normalizer], text: str) -> str:
    for normalizer in normalizers:
        text = normalizer(text)
    return text


def _strip(part: Mapping[str, Any], _charsmap: bytes | None) -> Normalizer:
    left, right = part.get("strip_left", True), part.get("strip_right", True)

    def strip(text: str) -> str:
        text = text.lstrip(WHITE_SPACE) if left else text
        return text.rstrip(WHITE_SPACE) if right else text

    return strip


def _expanded(pattern: str) -> int:
    """Characters of a pattern at the most when what is repeated a number of times is written out."""
    size = len(pattern)
    for repeat in _REPEAT.findall(pattern):
        size *= max([1, *(int(number[:9]) for number in _NUMBER.findall(repeat))])
    return size


def _as_oniguruma(pattern: str) -> str:
    """A pattern of the tokenizers library, whose `\\h` is a hexadecimal digit and whose `\\w` has no joiners,
    in the words of `regex`. (Inside of brackets `\\W` and `\\H` stay as they are.)
    """
    parts: list[str] = []
    in_brackets = False
    for part in _PATTERN_PART.findall(pattern):
        if part in ("[", "[^", "[]", "[^]"):
            in_brackets = True
        elif part == "]":
            in_brackets = False
        elif (in_brackets or part[0] == "\\") and (
            found := _ONIGURUMA.get(part if in_brackets else part.lower())
        ):
            if not in_brackets:
                numbers = _ALONE if part in (r"\w", r"\W") else ""
                found = f"[{'^' if part[1].isupper() else ''}{found}{numbers}]"
            part = found
        parts.append(part)
    return "".join(parts)


def compiled_pattern(pattern: Any) -> regex.Pattern[str]:
    """`{"String": …}` or `{"Regex": …}`. Raises TokenizerError; also for a pattern that matches nothing at
    all, which has no place to be.
    """
    text = pattern.get("Regex", pattern.get("String")) if isinstance(pattern, Mapping) else None
    if not isinstance(text, str) or not text:
        raise TokenizerError(f"the pattern {pattern!r:.60} is neither a text nor a regular expression")
    source = _as_oniguruma(text) if "Regex" in pattern else regex.escape(text)
    if _expanded(source) > _MAX_EXPANDED:
        raise TokenizerError(f"the pattern {text!r:.60} is too long, or repeats too much")
    try:
        found = regex.compile(source)
        empty = found.search("", timeout=MATCH_SECONDS)
    except (regex.error, TimeoutError, RecursionError, OverflowError) as error:
        raise TokenizerError(f"the pattern {text!r:.60} cannot be run: {error}") from None
    if empty is not None:
        raise TokenizerError(f"the pattern {text!r:.60} matches what is empty")
    return found


def _replace(part: Mapping[str, Any], _charsmap: bytes | None) -> Normalizer:
    pattern, content = compiled_pattern(part.get("pattern")), part.get("content")
    if not isinstance(content, str):
        raise TokenizerError("a normalizer Replace without its content")

    def replace(text: str) -> str:
        seen = seen_by(pattern, text)
        try:
            if seen is text:
                return str(pattern.sub(lambda _match: content, text, timeout=MATCH_SECONDS))
            spans = [match.span() for match in pattern.finditer(seen, timeout=MATCH_SECONDS)]
        except TimeoutError:
            raise TokenizerError(f"the pattern {pattern.pattern!r:.60} takes too long on this text") from None
        ends = [0, *(end for _, end in spans)]
        starts = [*(start for start, _ in spans), len(text)]
        return content.join(text[end:start] for end, start in zip(ends, starts, strict=True))

    return replace


def _form(name: Literal["NFC", "NFD", "NFKC", "NFKD"]) -> Maker:
    return lambda _part, _charsmap: partial(_normalized, name)


def _normalized(name: Literal["NFC", "NFD", "NFKC", "NFKD"], text: str) -> str:
    """By Unicode 9, as the library's tables are: newer characters stay as they are, and join no others."""
    if text.isascii():
        return text
    if not (newer := newer_than_9(text)).any():
        return unicodedata.normalize(name, text)
    places = [*np.flatnonzero(newer).tolist(), len(text)]
    parts = [unicodedata.normalize(name, text[: places[0]])]
    for place, following in pairwise(places):
        parts += (text[place], unicodedata.normalize(name, text[place + 1 : following]))
    return "".join(parts)


def _lowercase(text: str) -> str:
    """Letter by letter: a final sigma is none."""
    return text.lower() if text.isascii() else "".join(map(_lower, text))


@lru_cache(maxsize=1 << 14)
def _lower(character: str) -> str:
    if small := _newer_small_letters().get(character):
        return small
    return character if category(character) == "Cn" else character.lower()


@cache
def _newer_small_letters() -> dict[str, str]:
    """Small letters of those that are newer than the oldest Python's tables."""
    letters: dict[str, str] = {}
    for word in _NEWER_CAPITALS.split():
        capitals, small = word.split(">")
        first, _, last = capitals.partition("-")
        codes = range(int(first, 16), int(last or first, 16) + 1)
        letters |= {chr(code): chr(int(small, 16) + i) for i, code in enumerate(codes)}
    return letters


def _strip_accents(text: str) -> str:
    """What was a mark in Unicode 9."""
    if text.isascii():
        return text
    newer = newer_than_9(text).tolist()
    return "".join(c for c, new in zip(text, newer, strict=True) if new or not _was_mark(c))


def _was_mark(character: str) -> bool:
    return (category(character)[0] == "M" and character != "\U000111c9") or character in "\u1cf2\u1cf3"


def _prepend(part: Mapping[str, Any], _charsmap: bytes | None) -> Normalizer:
    prefix = part.get("prepend")
    if not isinstance(prefix, str):
        raise TokenizerError("a normalizer Prepend without its text")
    return lambda text: prefix + text if text else text


def _precompiled(_part: Mapping[str, Any], charsmap: bytes | None) -> Normalizer:
    if charsmap is None:
        raise TokenizerError("the normalizer Precompiled lacks its map of characters")
    return CharsMap(charsmap)


_MAKERS: dict[str, Maker] = {
    "Strip": _strip,
    "Replace": _replace,
    "NFC": _form("NFC"),
    "NFD": _form("NFD"),
    "NFKC": _form("NFKC"),
    "NFKD": _form("NFKD"),
    "Lowercase": lambda _part, _charsmap: _lowercase,
    "StripAccents": lambda _part, _charsmap: _strip_accents,
    "Prepend": _prepend,
    "Precompiled": _precompiled,
}


class CharsMap:
    """SentencePiece's precompiled map: a trie of UTF-8 (a double array, as darts-clone writes it) whose
    leaves are places in a text of replacements, each ended by a zero byte.

    As in the tokenizers library, a grapheme of a few bytes is looked up as a whole, and the shortest entry
    that begins it replaces all of it; else character by character.
    """

    def __init__(self, data: bytes) -> None:
        """Raises TokenizerError for a map that is damaged."""
        size = struct.unpack_from("<I", data)[0] if len(data) >= 4 else 0
        if size % 4 or not 4 <= size <= len(data) - 4:
            raise TokenizerError("the map of characters (precompiled_charsmap) is damaged")
        self._units = memoryview(data)[4 : 4 + size].cast("I")
        self._texts = data[4 + size :]
        self._known: dict[str, str] = {}

    def __call__(self, text: str) -> str:
        if text.isascii() and "\r\n" not in text:  # each character is a grapheme
            return "".join(map(self._replaced, text))
        return "".join(map(self._replaced, _GRAPHEME.findall(text)))

    def _replaced(self, grapheme: str) -> str:
        found = self._known.get(grapheme)
        if found is None:
            if len(self._known) >= _MAX_CACHED:
                self._known.clear()
            found = self._known[grapheme] = self._looked_up(grapheme)
        return found

    def _looked_up(self, grapheme: str) -> str:
        data = grapheme.encode("utf-8", "surrogatepass")
        if len(data) < _WHOLE_GRAPHEME and (found := self._entry(data)) is not None:
            return found
        entries = ((c, self._entry(c.encode("utf-8", "surrogatepass"))) for c in grapheme)
        return "".join(c if entry is None else entry for c, entry in entries)

    def _entry(self, data: bytes) -> str | None:
        """The replacement of the shortest entry that `data` begins with."""
        units, n = self._units, len(self._units)
        place = _offset(units[0])
        for byte in data:
            place ^= byte
            if byte == 0 or place >= n:
                return None
            unit = units[place]
            if unit & (1 << 31 | 0xFF) != byte:
                return None
            place ^= _offset(unit)
            if unit >> 8 & 1:
                return self._text(units[place] & (1 << 31) - 1 if place < n else len(self._texts))
        return None

    def _text(self, start: int) -> str:
        end = self._texts.find(b"\0", start)
        if start >= len(self._texts):
            raise TokenizerError("the map of characters (precompiled_charsmap) is damaged")
        return self._texts[start : end if end >= 0 else None].decode("utf-8", "replace")


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & 1 << 9) >> 6)
