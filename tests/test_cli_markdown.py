"""Answers drawn as Markdown, block by block (cli/markdown.py)."""

from __future__ import annotations

import io
import re

import pytest

from pyllamacpu.cli.markdown import MarkdownBlocks, render_block
from pyllamacpu.cli.output import Screen
from pyllamacpu.cli.session import Finished, Text
from pyllamacpu.cli.usage import Usage

ANSWER = "# Rivers\n\nThe **Seine** is\nlong.\n\n```python\nx = 1\n\ny = 2\n```\n\n- one\n- two\n"
BLOCKS = ["# Rivers\n", "The **Seine** is\nlong.\n", "```python\nx = 1\n\ny = 2\n```\n", "- one\n- two\n"]


@pytest.mark.parametrize("step", [1, 3, 7, 1000])
def test_blocks_end_at_blank_lines_outside_of_code(step: int) -> None:
    blocks = MarkdownBlocks()
    found = [b for at in range(0, len(ANSWER), step) for b in blocks.push(ANSWER[at : at + step])]
    assert [*found, blocks.flush()] == BLOCKS
    assert blocks.flush() == ""


def test_a_longer_fence_holds_a_shorter_one() -> None:
    blocks = MarkdownBlocks()
    assert blocks.push("````\n```\n\nx\n````\n\nend") == ["````\n```\n\nx\n````\n"]
    assert blocks.tail == "end"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)


def test_it_is_drawn_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "40")
    events = [Text(letter) for letter in ANSWER]
    shown, file = Screen(Terminal(), markdown=True), Screen(io.StringIO(), markdown=True)
    for screen in (shown, file):
        screen.answer(iter([*events, Finished("stop", Usage())]), stats=False)
    assert file.out.getvalue() == ANSWER  # type: ignore[attr-defined]
    raw = shown.out.getvalue()  # type: ignore[attr-defined]
    drawn = plain(raw)
    assert "The Seine is long." in drawn and " • one" in drawn and "```" not in drawn.split("\r")[-1]
    assert "\x1b[1m" in raw, "bold is bold"


def test_links_of_a_model_are_not_made() -> None:
    out = io.StringIO()
    render_block("[here](https://example.com/x)", out, 60)
    assert "\x1b]8" not in out.getvalue() and "https://example.com/x" in plain(out.getvalue())
