"""The general category of each character by one version of Unicode (16, as `tokenizers` and `tiktoken` of
2026 have it), whatever version the installed `regex` and Python have: token ids must not depend on those.
"""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import regex

_FILE = Path(__file__).with_name("unicode_categories.txt")
NAMES = (
    "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf",
    "Po", "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Cs", "Co", "Cn",
)  # fmt: skip
WHITE_SPACE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
"""Unicode's property White_Space; str.isspace() has four control characters more."""
_NEWER = 64  # added to a category's number
_RUN = regex.compile(r"([A-Z][a-z])(\+?)([0-9a-f]+)")
# One of most categories, of no script that a pattern names: in the range that some patterns name, and beyond.
_MIDDLE = range(0x800, 0x4E00)
_MIDDLE_ONES = "\u10c7\u2d00\u10fc\u1000\u102d\u102b\u1040\u2160\u2460\u104a\u2200\u20a0\u2600\u200b\u0bff"
_OTHERS = (
    "\U00010570\U00010597\U00016f93\U00010280\U00010a01\U00011000\U000104a0\U00010140\U00010107\U00010100"
    "\U0001d6c1\U0001e2ff\U0001d000\U0001d173\U0001fffe"
)


@cache
def _table() -> npt.NDArray[np.uint8]:
    """(0x110000,): of each character the place of its category in NAMES, and _NEWER."""
    text = _FILE.read_text(encoding="utf-8")
    runs = _RUN.findall("\n".join(line for line in text.splitlines() if not line.startswith("#")))
    numbers = {name: number for number, name in enumerate(NAMES)}
    kinds = np.array([numbers[name] + _NEWER * bool(newer) for name, newer, _ in runs], np.uint8)
    return np.repeat(kinds, [int(count, 16) for _, _, count in runs])


def numbers_of(text: str) -> npt.NDArray[np.uint32]:
    """(len(text),) code points."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


@lru_cache(maxsize=1 << 14)
def category(character: str) -> str:
    """As unicodedata.category."""
    return NAMES[_table()[ord(character)] % _NEWER]


def categories(first: int, end: int) -> list[str]:
    """Of the characters from `first` up to `end`, which is not one of them."""
    return [NAMES[kind] for kind in _table()[first:end] % _NEWER]


def newer_than_9(text: str) -> npt.NDArray[np.bool_]:
    """(len(text),): which characters Unicode 9 does not have."""
    kinds = _table()[numbers_of(text)]
    newer: npt.NDArray[np.bool_] = (kinds >= _NEWER) | (kinds == NAMES.index("Cn"))
    return newer


def seen_by(pattern: regex.Pattern[str], text: str) -> str:
    """The text in which to look for a pattern with categories: characters that the installed `regex` has in
    another category are replaced, one by one. Those that the pattern itself names stay.
    """
    if text.isascii():
        return text
    wrong = {character for character in set(text) if _is_misjudged(character)}.difference(pattern.pattern)
    return text.translate({ord(character): _stand_in(character) for character in wrong}) if wrong else text


@lru_cache(maxsize=1 << 16)
def _is_misjudged(character: str) -> bool:
    """Whether the installed `regex` has a character in another category."""
    name = category(character)
    if name in ("Cs", "Co"):  # never change
        return False
    return _pattern_of(name).match(character) is None


@cache
def _pattern_of(name: str) -> regex.Pattern[str]:
    return regex.compile(rf"\p{{{name}}}")


def _stand_in(character: str) -> str:
    return _known_one(category(character), ord(character) in _MIDDLE)


@cache
def _known_one(wanted: str, middle: bool) -> str:
    """A character that the installed `regex` has in this category too."""
    for one in _MIDDLE_ONES if middle else _OTHERS:
        if category(one) == wanted:
            return one
    same = np.flatnonzero(_table() % _NEWER == NAMES.index(wanted))
    return next(one for one in map(chr, same.tolist()) if not _is_misjudged(one))
