"""Lines that a person types: editing, a history kept between chats, completion by Tab."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, TextIO

from pyllamacpu.cli.commands import COMMAND_NAMES, FILE_COMMANDS, OWN_SETTINGS
from pyllamacpu.cli.wrapping import say
from pyllamacpu.files import read_problem
from pyllamacpu.progress import is_terminal
from pyllamacpu.sampling.options import SamplingOptions
from pyllamacpu.store.paths import store_home

if TYPE_CHECKING:
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document
    from prompt_toolkit.history import History

ReadLine = Callable[[str], str]
"""Reads one line after showing a prompt; EOFError at the end, Interrupt or KeyboardInterrupt on Ctrl-C."""

Remember = Callable[[str], None]
"""Adds a whole message to the history."""


class InterruptedLine(KeyboardInterrupt):
    """Ctrl-C while a line was being edited; `text` is what it held."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text


def line_reader() -> tuple[ReadLine, Remember]:
    """Lines with editing and a history kept between chats; plain lines where no terminal can be drawn on.

    The history gets what `remember` is given: a message of several lines is one entry.
    """
    draw_on = next((stream for stream in (sys.stdout, sys.stderr) if is_terminal(stream)), None)
    if draw_on is None:
        asked = next((stream for stream in (sys.stdout, sys.stderr) if stream.isatty()), None)
        return (lambda prompt: _plain_line(prompt, asked)), (lambda _: None)
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.key_binding.key_processor import KeyPressEvent
    from prompt_toolkit.output import create_output

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    history, remember = message_history()
    prompter: PromptSession[str] = PromptSession(
        history=history,
        key_bindings=keys,
        completer=completer(),
        complete_while_typing=False,
        enable_suspend=True,  # Ctrl-Z, as in a shell; else it is a character of the line
        output=create_output(stdout=draw_on),
    )

    def read_line(prompt: str) -> str:
        try:
            return prompter.prompt(prompt)
        except KeyboardInterrupt:
            raise InterruptedLine(prompter.default_buffer.text) from None

    return read_line, remember


@contextlib.contextmanager
def keys_not_shown() -> Iterator[None]:
    """Keys that are pressed while an answer comes are kept for the next line, not printed into the answer."""
    with _echo(False):
        yield


def typed_reply(question: str) -> str:
    """The line that a person types at a question, of which nothing was typed before it was there; "" where
    no person can be asked, and at the end of input.
    """
    asked = next((stream for stream in (sys.stdout, sys.stderr) if stream.isatty()), None)
    if asked is None or not sys.stdin.isatty():
        return ""
    with _echo(True):
        try:
            return _plain_line(question, asked)
        except EOFError:
            print(file=asked)
            return ""


@contextlib.contextmanager
def _echo(on: bool) -> Iterator[None]:
    """Whether the terminal of stdin shows what is typed; for `on`, what was typed before is thrown away."""
    if not sys.stdin.isatty() or importlib.util.find_spec("termios") is None:
        yield
        return
    import termios

    try:
        terminal = sys.stdin.fileno()
        before = termios.tcgetattr(terminal)
    except (OSError, ValueError, termios.error):  # what claims to be a terminal is not one
        yield
        return
    if on:
        termios.tcflush(terminal, termios.TCIFLUSH)
    changed = [*before]
    changed[3] = before[3] | termios.ECHO if on else before[3] & ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSANOW, changed)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, before)


def _plain_line(prompt: str, asked: TextIO | None) -> str:
    """A line of stdin; the prompt is shown where somebody sees it, though it cannot be drawn over."""
    if asked is not None:
        print(prompt, end="", file=asked, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")


def completer() -> Completer:
    """Completes commands, the names of settings behind /set, and file names behind /save and /load."""
    from prompt_toolkit.completion import Completer, PathCompleter, WordCompleter
    from prompt_toolkit.document import Document

    settings = [field.name for field in fields(SamplingOptions)] + [*OWN_SETTINGS, "system"]
    commands = WordCompleter(sorted(COMMAND_NAMES), sentence=True)
    names, files = WordCompleter(sorted(settings)), PathCompleter(expanduser=True)

    class ChatCompleter(Completer):
        def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
            command, space, rest = document.text_before_cursor.partition(" ")
            if not space:
                return commands.get_completions(document, event) if command.startswith("/") else []
            inner = Document(rest.lstrip(), len(rest.lstrip()))
            if command in FILE_COMMANDS:
                return files.get_completions(inner, event)
            return names.get_completions(inner, event) if command == "/set" and " " not in rest else []

    return ChatCompleter()


def message_history() -> tuple[History, Remember]:
    """A history that is added to by the second value alone, not by each line that is read.

    It is kept in the store's home, for its owner only; in memory where that cannot be written.
    """
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory

    path = store_home() / "chat_history"
    kept: History
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        with open(path, "ab"):
            pass
        kept = FileHistory(str(path))
    except OSError:
        kept = InMemoryHistory()

    class MessageHistory(History):
        is_kept = True  # between chats, as far as that can be

        def load_history_strings(self) -> Iterable[str]:
            return kept.load_history_strings()

        def store_string(self, string: str) -> None:
            if not self.is_kept:
                return
            try:
                kept.store_string(string.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
            except OSError as error:  # the disk is full, or a limit of this user is reached
                self.is_kept = False
                say(f"warning: {path}: {read_problem(error)}; messages are remembered until this chat ends")

        def append_string(self, string: str) -> None:
            pass  # a line: it may be a part of a message only

        def remember(self, text: str) -> None:
            if text.strip() and self.get_strings()[-1:] != [text]:
                super().append_string(text)

    history = MessageHistory()
    return history, history.remember
