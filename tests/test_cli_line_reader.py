"""Lines that a person types (cli/line_reader.py), through prompt_toolkit's own pipe input."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import pty
import sys
import termios
from pathlib import Path

import pytest
from cli_letters import Stdin, cli_home  # noqa: F401
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from pyllamacpu.cli import line_reader as module
from pyllamacpu.cli.line_reader import completer, keys_not_shown, line_reader, message_history

pytestmark = pytest.mark.usefixtures("cli_home")


def completions(text: str) -> list[str]:
    found = completer().get_completions(Document(text, len(text)), CompleteEvent(completion_requested=True))
    return [
        text[: len(text) + c.start_position] + c.text if c.start_position else text + c.text for c in found
    ]


def test_tab_completes_commands_settings_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "talk.json").write_text("{}")
    (tmp_path / "tales").mkdir()
    monkeypatch.chdir(tmp_path)
    assert completions("/con") == ["/continue"]
    assert completions("/set repeat_p") == ["/set repeat_penalty"]
    assert completions("/set stop") == ["/set stop_loops"]
    assert completions("/save ta") == ["/save tales", "/save talk.json"]
    assert completions(f"/load {tmp_path}/talk") == [f"/load {tmp_path}/talk.json"]
    assert completions("tal") == [] and completions("hello /sa") == [] and completions("/set temp 0") == []


def test_the_history_keeps_messages_not_lines() -> None:
    history, remember = message_history()
    history.append_string('"""')  # prompt_toolkit's, for each line
    remember('"""\none\ntwo"""')
    remember('"""\none\ntwo"""')
    remember("  ")
    remember("three")
    again, _ = message_history()
    assert list(again.load_history_strings()) == ["three", '"""\none\ntwo"""']

    async def loaded() -> list[str]:
        return [entry async for entry in history.load()]

    assert set(asyncio.run(loaded())) == {"three", '"""\none\ntwo"""'}


def test_the_history_takes_bytes_that_are_no_text() -> None:
    _, remember = message_history()
    remember("caf\udcc3\udca9 \udcff")
    assert list(message_history()[0].load_history_strings()) == ["café \ufffd"]


def test_the_history_is_its_owners(cli_home: Path) -> None:  # noqa: F811
    message_history()[1]("secret")
    assert (cli_home / "chat_history").stat().st_mode & 0o777 == 0o600


def test_a_home_that_cannot_be_written(cli_home: Path) -> None:  # noqa: F811
    cli_home.parent.mkdir(parents=True, exist_ok=True)
    cli_home.write_text("a file")
    history, remember = message_history()
    remember("kept in memory")
    assert history.get_strings() == ["kept in memory"]


def test_a_disk_that_is_full(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Messages are remembered as long as the chat runs; one warning says so."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("prompt_toolkit.history.FileHistory.store_string", full)
    history, remember = message_history()
    remember("one")
    remember("two")
    assert set(history.get_strings()) == {"one", "two"}
    warned = " ".join(capsys.readouterr().err.split())
    assert warned.count("warning") == 1 and "No space left on device; messages are remembered" in warned


class DumbTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_prompts_show_on_a_dumb_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    out = DumbTerminal()
    monkeypatch.setattr(module.sys, "stdout", out)
    monkeypatch.setattr(sys, "stdin", Stdin(b"Hi\nlast", terminal=True))
    read_line, _ = line_reader()
    assert (read_line(">>> "), read_line("... ")) == ("Hi", "last")
    assert out.getvalue() == ">>> ... "
    with pytest.raises(EOFError):
        read_line(">>> ")


def test_no_prompt_goes_into_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(module.sys, "stdout", out)
    monkeypatch.setattr(module.sys, "stderr", err)
    monkeypatch.setattr(sys, "stdin", Stdin(b"Hi\n", terminal=True))
    assert line_reader()[0](">>> ") == "Hi"
    assert out.getvalue() == err.getvalue() == ""


def test_keys_pressed_during_an_answer_are_kept_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    main, terminal = pty.openpty()
    monkeypatch.setattr(module.sys, "stdin", os.fdopen(terminal, "r"))
    shown = termios.tcgetattr(terminal)[3] & termios.ECHO
    with keys_not_shown():
        assert not termios.tcgetattr(terminal)[3] & termios.ECHO
        os.write(main, b"typed ahead\n")
    assert termios.tcgetattr(terminal)[3] & termios.ECHO == shown
    assert module.sys.stdin.readline() == "typed ahead\n"
    os.close(main)
    module.sys.stdin.close()


def test_keys_of_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal in (True, False):
        monkeypatch.setattr(module.sys, "stdin", Stdin(b"x", terminal=terminal))
        with keys_not_shown():
            assert module.sys.stdin.read() == "x"
