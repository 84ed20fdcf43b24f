"""The chat on a real terminal (a pty), with the starter model: what a newcomer sees.

Covers cli/repl.py, cli/output.py.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\r")


class Person:
    """Types into a command that runs on a terminal of a given size, and reads what is shown."""

    def __init__(self, args: list[str], width: int, home: Path, **environment: str) -> None:
        self.main, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
        environ = os.environ | {"PYTHONPATH": str(ROOT), "PYLLAMACPU_HOME": str(home), "TERM": "xterm"}
        environ |= {
            "HF_ENDPOINT": "http://127.0.0.1:9",
            "NO_COLOR": "1",
            "PROMPT_TOOLKIT_NO_CPR": "1",
            **environment,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pyllamacpu", *args],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env=environ,
            start_new_session=True,
        )
        os.close(terminal)
        self.shown = ""
        self._read = 0  # characters of `shown` that were waited for

    def wait_for(self, text: str, seconds: float = 60) -> str:
        """What is shown until `text` comes, without control codes."""
        end = time.monotonic() + seconds
        while text not in self.shown[self._read :]:
            assert time.monotonic() < end, f"no {text!r} in {self.shown!r}"
            if select.select([self.main], [], [], 0.2)[0]:
                self.shown += _CODES.sub("", os.read(self.main, 65536).decode("utf-8", "replace"))
        at = self.shown.index(text, self._read) + len(text)
        before, self._read = self.shown[self._read : at], at
        return before

    def type(self, text: str) -> None:
        os.write(self.main, text.encode())

    def leave(self) -> int:
        self.type("/bye\r")
        code = self.process.wait(30)
        os.close(self.main)
        return code


@pytest.fixture
def chat(starter_model: Path, tmp_path: Path) -> Iterator[Callable[..., Person]]:
    """Begins a chat with the starter model; what is still running at the end is ended."""
    people: list[Person] = []

    def begin(*args: str, width: int = 80, **environment: str) -> Person:
        line = ["chat", "-m", str(starter_model), "--no-show-timings", *args]
        people.append(Person(line, width, tmp_path / "home", **environment))
        return people[-1]

    yield begin
    for person in people:
        if person.process.poll() is None:
            person.process.kill()
            person.process.wait()


@pytest.mark.parametrize(("width", "term"), [(80, "xterm"), (30, "xterm"), (40, "dumb")])
def test_a_first_chat(starter_model: Path, chat: Callable[..., Person], width: int, term: str) -> None:
    person = chat("--ignore-eos", "--temp", "0", "-n", "60", width=width, TERM=term)
    banner = person.wait_for(">>>")
    assert starter_model.name in "".join(banner.split()) and "warning" not in banner
    person.type("How do I boil an egg?\r")
    answer = person.wait_for("/continue")
    lines = answer.split("\n")[1:]
    assert len(lines) > 3 and all(len(line) <= width for line in lines)
    person.wait_for(">>>")
    person.type("/continue\r")
    person.wait_for("[not finished")
    person.wait_for(">>>")
    person.type("/system\r")
    person.wait_for("template's own")
    person.wait_for("helpful")
    person.wait_for(">>>")
    assert person.leave() == 0


def test_ctrl_z_is_no_letter_of_the_line(chat: Callable[..., Person]) -> None:
    person = chat()  # in a session of its own, which a kernel does not suspend
    person.wait_for(">>>")
    person.type("/sys\x1atem\r")
    person.wait_for("template's own")
    person.wait_for(">>>")
    assert person.leave() == 0


def test_an_entry_of_the_history_is_a_whole_message(chat: Callable[..., Person], tmp_path: Path) -> None:
    person = chat("-n", "1")
    for prompt, line in ((">>>", '"""'), ("...", "one"), ("...", 'two"""'), (">>>", "/help")):
        person.wait_for(prompt)
        person.type(line + "\r")
    person.wait_for("Ctrl-C")
    person.wait_for(">>>")
    assert person.leave() == 0
    entries = (tmp_path / "home" / "chat_history").read_text().split("\n\n")
    assert ['+"""', "+one", '+two"""'] in [entry.strip().split("\n")[1:] for entry in entries]
