"""Bars and lines: on terminals, and where there is none."""

from __future__ import annotations

import io
import sys
import time

import pytest

from pyllamacpu import progress
from pyllamacpu.progress import StatusLine, byte_bar, clear_line, count_bar, is_terminal, progress_line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    stream = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_terminals_that_understand_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    assert is_terminal(terminal) and not is_terminal(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not is_terminal(terminal)
    clear_line()
    assert terminal.getvalue() == ""


def test_a_status_line_is_gone_at_the_end() -> None:
    stream = io.StringIO()
    line = StatusLine(stream)
    line.clear()
    assert stream.getvalue() == ""
    line.show("one")
    line.show("two")
    line.clear()
    line.clear()
    assert stream.getvalue() == "\r\x1b[Kone\r\x1b[Ktwo\r\x1b[K"


def test_the_line_says_how_long(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    terminal = on_terminal(monkeypatch)
    with progress_line() as show:
        clock[0] += 10
        show("reading", 1, 4)
        clock[0] += progress.DRAW_EVERY / 2
        show("too soon", 2, 4)
    assert terminal.getvalue() == "\r\x1b[Kreading  1/4, 0:30 left\r\x1b[K"


def test_lines_now_and_then_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    with byte_bar(4000, "fetching") as show:
        show(1000, "a")
        clock[0] += progress.LINE_EVERY
        show(2000, "b")
        clock[0] += 1
        show(3000, "c")
    with progress_line() as line:
        line("never seen", 1, 1)
    err = capsys.readouterr().err
    assert err == "fetching (4.00 KB) ...\nb: 2.00 KB of 4.00 KB (50 %), 400 B/s, 0:05 left\n"


def test_counted_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    with progress_line(lines=True) as show:
        clock[0] += 1
        show("too soon", 1, 10)
        clock[0] += progress.LINE_EVERY - 1
        show("requests", 5, 10)
        show("too soon", 6, 10)
    assert capsys.readouterr().err == "requests  5/10, 0:05 left\n"


def test_bars_show_what_is_being_done(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with byte_bar(1 << 20, "first") as show:
        show(1 << 19)
        show(1 << 21, "[odd] name")
    assert "first" in terminal.getvalue() and "[odd] name" in terminal.getvalue()
    with count_bar() as count:
        count("a [b]", 3, 7)
    assert "a [b]" in terminal.getvalue() and "3/7" in terminal.getvalue()
