"""What characters are, in blocks of 256, as the patterns of bpe_words.py see them."""

from __future__ import annotations

from functools import cache

from pyllamacpu.native import lib
from pyllamacpu.text.unicode_categories import WHITE_SPACE, categories

_SETS = (
    (lib.PL_CHAR_LETTER, ("L",)),
    (lib.PL_CHAR_NUMBER, ("N",)),
    (lib.PL_CHAR_UPPER, ("Lu", "Lt", "Lm", "Lo", "M")),
    (lib.PL_CHAR_LOWER, ("Ll", "Lm", "Lo", "M")),
)


@cache
def _classes_of(category: str) -> int:
    return sum(flag for flag, names in _SETS if category.startswith(names))


@cache
def classes_of_block(block: int) -> bytes:
    """PL_CHAR_… of the characters 256 * block … + 255, one byte each."""
    first = 256 * block
    classes = bytearray(map(_classes_of, categories(first, first + 256)))
    for character in WHITE_SPACE:
        if first <= ord(character) < first + 256:
            classes[ord(character) - first] |= lib.PL_CHAR_SPACE
    return bytes(classes)
