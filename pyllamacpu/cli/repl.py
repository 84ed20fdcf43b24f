"""The interactive chat: lines in with editing and history, answers out, until the person leaves."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from pyllamacpu.cli.commands import COMMAND_NAMES, is_command, run_command
from pyllamacpu.cli.output import Screen
from pyllamacpu.cli.session import ChatSession
from pyllamacpu.errors import PyllamacpuError
from pyllamacpu.progress import is_terminal
from pyllamacpu.store.paths import store_home

if TYPE_CHECKING:
    from prompt_toolkit.history import History

PROMPT, MORE = ">>> ", "... "
_QUOTES = '"""'
_INTERRUPTED = 130

ReadLine = Callable[[str], str]
"""Reads one line after showing a prompt; EOFError at the end, Interrupt or KeyboardInterrupt on Ctrl-C."""


class InterruptedLine(KeyboardInterrupt):
    """Ctrl-C while a line was being edited; `text` is what it held."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text


def read_message(read_line: ReadLine) -> str:
    '''One message: a line, or everything between two `"""`.'''
    line = read_line(PROMPT)
    if not line.lstrip().startswith(_QUOTES):
        return line
    text = line.lstrip()[len(_QUOTES) :]
    while not text.rstrip().endswith(_QUOTES):
        text += "\n" + read_line(MORE)
    return text.rstrip()[: -len(_QUOTES)].strip("\n")


class Repl:
    """The loop of an interactive chat."""

    def __init__(self, session: ChatSession, read_line: ReadLine, screen: Screen) -> None:
        self.session = session
        self.read_line = read_line
        self.screen = screen

    def run(self, first: str | None = None) -> int:
        """Chat until /bye or the end of input (0), or Ctrl-C twice at an empty prompt (130)."""
        if first is not None:
            self.handle(first)
        interrupted = False
        while True:
            try:
                line = read_message(self.read_line)
            except EOFError:
                return 0
            except KeyboardInterrupt as interrupt:
                if getattr(interrupt, "text", ""):
                    continue
                if interrupted:
                    return _INTERRUPTED
                interrupted = True
                self.screen.note("Ctrl-C again, Ctrl-D or /bye leaves")
                continue
            interrupted = False
            if line.strip() and not self.handle(line):
                return 0

    def handle(self, line: str) -> bool:
        """Carry out one message or command; False when the chat is over. Errors become a line."""
        try:
            if not is_command(line):
                self.screen.answer(self.session.ask(line.strip("\n"), self.screen.on_prompt))
                return True
            reply = run_command(self.session, line, self.screen.on_prompt)
            if reply.text:
                self.screen.note(reply.text)
            if reply.answer:
                self.screen.answer(reply.answer)
            return not reply.leave
        except KeyboardInterrupt:
            self.screen.note("[stopped]")
        except PyllamacpuError as error:
            self.screen.error(str(error))
        return True


def line_reader() -> ReadLine:
    """Lines with editing and a history kept between chats; plain lines where no terminal can be drawn on."""
    draw_on = next((stream for stream in (sys.stdout, sys.stderr) if is_terminal(stream)), None)
    if draw_on is None:
        return lambda prompt: _plain_line()
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.key_binding.key_processor import KeyPressEvent
    from prompt_toolkit.output import create_output

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    prompter: PromptSession[str] = PromptSession(
        history=_history(),
        key_bindings=keys,
        completer=WordCompleter(list(COMMAND_NAMES), sentence=True),
        complete_while_typing=False,
        output=create_output(stdout=draw_on),
    )

    def read_line(prompt: str) -> str:
        try:
            return prompter.prompt(prompt)
        except KeyboardInterrupt:
            raise InterruptedLine(prompter.default_buffer.text) from None

    return read_line


def _plain_line() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")


def _history() -> History:
    """The history file in the store's home, for its owner only; in memory where that cannot be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    path = store_home() / "chat_history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        with open(path, "ab"):
            pass
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))
