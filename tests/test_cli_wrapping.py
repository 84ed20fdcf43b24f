"""Lines that end between words, at any width (cli/wrapping.py)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllamacpu.cli.wrapping import WordWrapper, columns, wrap_words


def wrapped(text: str, width: int, step: int = 1) -> str:
    wrapper = WordWrapper(width)
    pieces = [text[at : at + step] for at in range(0, len(text), step)]
    return "".join(map(wrapper.push, pieces)) + wrapper.flush()


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [
        ("one two three", 7, "one two\nthree"),
        ("one two three", 8, "one two\nthree"),
        ("one two three", 13, "one two three"),
        ("one  two", 4, "one\ntwo"),
        ("a\nb", 9, "a\nb"),
        ("    code here", 8, "    code\nhere"),
        ("      code", 8, "    code"),
        ("a\tb", 20, "a\tb"),
        ("abcdefghij", 4, "abcdefghij"),  # the terminal breaks it: no line holds it
        ("ab abcdefghij cd", 4, "ab\nabcdefghij\ncd"),
        ("ab abcdefghij cd", 5, "ab\nabcdefghij\ncd"),
        ("日本語 文字", 4, "日本\n語\n文字"),
        ("naïve café", 5, "naïve\ncafé"),
        ("e\u0301e\u0301e\u0301 x", 3, "e\u0301e\u0301e\u0301\nx"),
        ("tail  ", 80, "tail  "),
    ],
)
def test_wrapping(text: str, width: int, shown: str) -> None:
    assert wrapped(text, width) == shown


@settings(max_examples=300, deadline=None)
@given(st.text("ab \n\t,日", max_size=60), st.integers(1, 12), st.integers(1, 7))
def test_nothing_is_lost_and_pieces_do_not_matter(text: str, width: int, step: int) -> None:
    shown = wrapped(text, width, step)
    assert shown == wrapped(text, width, 1)
    assert "".join(shown.split()) == "".join(text.split())
    for line in shown.split("\n"):
        first, _, rest = line.strip(" ").partition(" ")
        if "\t" not in line and columns(line.rstrip(" ")) > width:
            assert columns(first) > width, "only a word that is longer than a line may be"
            last_row = (columns(first) - 1) % width + 1
            assert not rest or last_row + 1 + columns(rest) <= width


def test_a_word_is_held_back_until_it_is_whole() -> None:
    wrapper = WordWrapper(10)
    assert [wrapper.push(piece) for piece in ("Hel", "lo", " ", "wor", "ld", "!")] == [
        "",
        "",
        "Hello",
        "",
        "",
        "",
    ]
    assert wrapper.flush() == "\nworld!"


def test_rows_go_on_below_their_second_column() -> None:
    assert wrap_words("/set      the settings of the chat", 24) == (
        "/set      the settings\n          of the chat"
    )
    assert wrap_words("a long first column    b c d", 10) == "a long\n  first\n  column\n  b c d"
    assert wrap_words("short\n\nlines", 10) == "short\n\nlines"
