"""Characters by one version of Unicode, whatever the installed `regex` and Python have."""

from __future__ import annotations

import unicodedata
from functools import cache

import pytest
import regex
import tiktoken
from tokenizers import Regex, normalizers, pre_tokenizers

from pyllamacpu.text import bpe_words, unicode_categories
from pyllamacpu.text.character_classes import classes_of_block
from pyllamacpu.text.merges import split_words
from pyllamacpu.text.normalizers import make_normalizer
from pyllamacpu.text.pretokenizers import make_pretokenizer
from pyllamacpu.text.unicode_categories import NAMES, categories, category, newer_than_9, seen_by

NEW_LETTER = "\U00033480"  # CJK Extension J, of Unicode 17


@cache
def everything() -> dict[str, str]:
    """All characters, and what they are."""
    return {chr(c): name for c, name in enumerate(categories(0, 0x110000)) if name != "Cs"}


@cache
def known() -> list[str]:
    return [c for c, name in everything().items() if name != "Cn"]


@cache
def misjudged(wanted: bool) -> list[str]:
    """The characters that the installed `regex` has in another category, or the other ones."""
    return [c for c in everything() if unicode_categories._is_misjudged(c) == wanted]


@cache
def doubtful() -> list[str]:
    """Characters that `regex`, Python and Unicode 16 have in different categories, and some of all others."""
    others = (c for c in known() if everything()[c] != unicodedata.category(c))
    return [*misjudged(True), *others, *known()[::101], NEW_LETTER, "\u0378", "\U0001fffe"]


@pytest.mark.parametrize("name", ["L", "N", "P", "S", "M", "Lu", "Ll"])
def test_categories_are_those_of_tiktoken(name: str) -> None:
    """Of all characters of Unicode 16; a later release may know more."""
    ranks = {bytes([i]): i for i in range(256)}
    letters = tiktoken.Encoding("x", pat_str=rf"\p{{{name}}}", mergeable_ranks=ranks, special_tokens={})
    text = bytes(letters.encode_ordinary("".join(known()))).decode()
    assert text == "".join(c for c in known() if everything()[c].startswith(name))


def test_classes_of_blocks_are_those_of_the_categories() -> None:
    """Of all characters that `regex` has in the same category."""
    text = "".join(misjudged(False))
    assert len(text) > 1_000_000
    blocks = b"".join(map(classes_of_block, range(0x1100)))
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    for flag, pattern in ((1, r"\p{L}"), (2, r"\p{N}"), (4, r"\s"), (8, upper), (16, lower)):
        found = "".join(regex.findall(f"{pattern}+", text))
        assert found == "".join(c for c in text if blocks[ord(c)] & flag)


@pytest.mark.parametrize("name", NAMES)
def test_patterns_see_the_same_categories(name: str) -> None:
    pattern = regex.compile(rf"\p{{{name}}}")
    seen = seen_by(pattern, "".join(doubtful()))
    found = [c for c, one in zip(doubtful(), seen, strict=True) if pattern.match(one)]
    assert found == [c for c in doubtful() if everything()[c] == name]


def test_a_pattern_that_names_a_character_finds_it() -> None:
    pattern = regex.compile(regex.escape(NEW_LETTER))
    assert pattern.search(seen_by(pattern, f"a{NEW_LETTER}")) is not None
    letters = make_normalizer({"type": "Replace", "pattern": {"Regex": r"\p{L}"}, "content": "x"}, None)
    assert letters(f"ab{NEW_LETTER}é1") == f"xx{NEW_LETTER}x1"


@pytest.mark.parametrize("pattern", [bpe_words.LLAMA3, bpe_words.QWEN35, bpe_words.DEEPSEEK3])
def test_words_are_those_of_tokenizers(pattern: str) -> None:
    """Of patterns that `regex` matches: doubtful characters beside letters, digits and punctuation."""
    ours = bpe_words.PreTokenizer((pattern,))
    theirs = pre_tokenizers.Split(Regex(pattern), "isolated")
    text = "\n".join(f"ab{c}c {c}1{c}! {c}" for c in doubtful()[::5])
    assert list(ours.split(text)) == [word for word, _span in theirs.pre_tokenize_str(text)]


@pytest.mark.parametrize("pattern", bpe_words.RULES, ids=range(len(bpe_words.RULES)))
def test_words_in_c_are_the_same(pattern: str) -> None:
    characters, ours = sorted(doubtful()), bpe_words.PreTokenizer((pattern,))
    for i in range(0, len(characters), 1000):  # of few blocks each: the helper begins anew with every block
        text = "\n".join(f"ab{c}c {c}1{c}! {c}" for c in characters[i : i + 1000])
        words = split_words(bpe_words.RULES[pattern], text.encode())
        assert words == [word.encode() for word in ours.split(text)]


@pytest.mark.parametrize("kind", ["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents"])
def test_normalizers_are_those_of_tokenizers(kind: str) -> None:
    """Of every character alone, and beside marks that join it."""
    ours, theirs = make_normalizer({"type": kind}, None), getattr(normalizers, kind)()
    text = "\n".join(list(everything())[1:]) + "\n".join(f"e{c}\u0301\u0316{c}" for c in doubtful())
    assert ours(text).split("\n") == theirs.normalize_str(text).split("\n")


@pytest.mark.parametrize("part", [{"type": "Digits", "individual_digits": True}, {"type": "Punctuation"}])
def test_cuts_are_those_of_tokenizers(part: dict[str, object]) -> None:
    theirs = pre_tokenizers.Digits(True) if part["type"] == "Digits" else pre_tokenizers.Punctuation()
    text = "a".join(everything())
    assert make_pretokenizer(part)(text, True) == [word for word, _span in theirs.pre_tokenize_str(text)]


def test_the_table_has_every_character() -> None:
    assert [category(c) for c in "aA1 \n中"] == ["Ll", "Lu", "Nd", "Zs", "Cc", "Lo"]
    assert categories(0xD800, 0xD801) == ["Cs"] and categories(0x10FFFE, 0x110000) == ["Cn", "Cn"]
    assert category(NEW_LETTER) == "Cn"
    assert newer_than_9("a\u07fd\u0301" + NEW_LETTER).tolist() == [False, True, False, True]
