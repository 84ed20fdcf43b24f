"""Tables at any width (cli/tables.py)."""

from __future__ import annotations

import pytest

from pyllamacpu.cli.tables import table_lines
from pyllamacpu.cli.wrapping import columns

HEAD = ("key", "type", "value")
ROWS = [
    ("general.architecture", "string", "llama"),
    (
        "tokenizer.ggml.tokens",
        "array of 49152 string",
        "[<|endoftext|>, <|im_start|>, Ġ日本, … 49152 in all]",
    ),
    ("tokenizer.chat_template", "string", "{% for message in messages %}" * 5),
]


@pytest.mark.parametrize("width", [1, 7, 20, 40, 60, 80, 100, 200])
def test_nothing_is_lost_and_nothing_is_wider_than_the_terminal(width: int) -> None:
    lines = table_lines("Metadata", HEAD, ROWS, (), width)
    assert all(columns(line) <= max(width, 2) + (4 if width < 6 else 0) for line in lines[1:])
    squeezed = "".join("".join(lines).split())
    for row in ROWS:
        assert "".join(row[0].split()) in squeezed
        if width >= 80:
            assert "".join(row[2].split()) in squeezed


def test_three_forms() -> None:
    assert table_lines("T", ("a", "b"), [("1", "22"), ("333", "4")], (1,)) == [
        "T",
        "a     b",
        "1    22",
        "333   4",
    ]
    long = " ".join(["word"] * 12)
    assert table_lines("T", ("k", "v"), [("key", long), ("k", "short")], (), 46) == [
        "T",
        "k    v",
        "key  word word word word word word word word",
        "     word word word word",
        "k    short",
    ]
    assert table_lines("T", ("k", "v"), [("key", long), ("k", "short")], (), 30) == [
        "T",
        "k    v",
        "key",
        "    word word word word word",
        "    word word word word word",
        "    word word",
        "k    short",
    ]
    assert table_lines("T", ("k", "t", "v"), [("a.long.key", "string", "one two three")], (), 18) == [
        "T",
        "a.long.key",
        "    t: string",
        "    v: one two",
        "    three",
    ]


def test_a_table_without_titles() -> None:
    assert table_lines("File", ("", ""), [("path", "a.gguf"), ("bytes", "1")]) == [
        "File",
        "path   a.gguf",
        "bytes  1",
    ]
