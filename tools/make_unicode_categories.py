"""Writes pyllamacpu/text/unicode_categories.txt: the general category of every character, as the `tokenizers`
package knows it, and which characters are newer than Unicode 9.

    python tools/make_unicode_categories.py

Needs `tokenizers`, and perl for the ages of characters.
"""

from __future__ import annotations

import subprocess
import textwrap
from itertools import groupby
from pathlib import Path

import tokenizers
from tokenizers import Regex, pre_tokenizers

from pyllamacpu.text.unicode_categories import NAMES

TARGET = Path(__file__).resolve().parent.parent / "pyllamacpu" / "text" / "unicode_categories.txt"
CATEGORIES = [name for name in NAMES if name not in ("Cs", "Cn")]
AGES = r"print chr($_) =~ /\p{Present_In: 9.0}/ ? 1 : 0 for 0 .. 0x10ffff"
BLOCK = 4096
HEADER = """\
# General categories of the characters from 0 on: a category, "+" when the characters are newer than Unicode
# 9, and how many (hexadecimal). Made by tools/make_unicode_categories.py from tokenizers {version}.
"""


def categories() -> list[str]:
    found = ["Cn"] * 0x110000
    found[0xD800:0xE000] = ["Cs"] * 0x800
    for category in CATEGORIES:
        others = pre_tokenizers.Split(Regex(rf"\p{{{category}}}"), "removed")
        for start in range(0, 0x110000, BLOCK):
            codes = [c for c in range(start, start + BLOCK) if not 0xD800 <= c < 0xE000]
            words = others.pre_tokenize_str("".join(map(chr, codes)))
            left = {character for word, _span in words for character in word}
            for code in codes:
                if chr(code) not in left:
                    found[code] = category
    return found


def main() -> None:
    old = subprocess.run(["perl", "-e", AGES], check=True, capture_output=True, text=True).stdout
    marked = [
        category + ("+" if age == "0" and category != "Cn" else "")
        for category, age in zip(categories(), old, strict=True)
    ]
    runs = " ".join(f"{kind}{len(list(run)):x}" for kind, run in groupby(marked))
    header = HEADER.format(version=tokenizers.__version__)
    TARGET.write_text(header + textwrap.fill(runs, 110) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
