"""What characters are, in blocks of 256, as the patterns of bpe_words.py see them: by the same library."""

from __future__ import annotations

from functools import cache

import numpy as np
import regex

from pyllamacpu.native import lib

_SETS = (
    (lib.PL_CHAR_LETTER, r"\p{L}"),
    (lib.PL_CHAR_NUMBER, r"\p{N}"),
    (lib.PL_CHAR_SPACE, r"\s"),
    (lib.PL_CHAR_UPPER, r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"),
    (lib.PL_CHAR_LOWER, r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"),
)


@cache
def classes_of_block(block: int) -> bytes:
    """PL_CHAR_… of the characters 256 * block … + 255, one byte each."""
    text = "".join(map(chr, range(256 * block, 256 * block + 256)))
    classes = np.zeros(256, np.uint8)
    for flag, pattern in _SETS:
        for match in regex.finditer(f"{pattern}+", text):
            classes[match.start() : match.end()] |= flag
    return classes.tobytes()
