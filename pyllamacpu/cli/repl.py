"""The interactive chat: lines in with editing and history, answers out, until the person leaves."""

from __future__ import annotations

from collections.abc import Iterator

from pyllamacpu.cli.commands import FILE_COMMANDS, is_command, is_known_command, run_command
from pyllamacpu.cli.images import dropped_images, unshown_picture
from pyllamacpu.cli.line_reader import InterruptedLine, ReadLine, Remember, keys_not_shown
from pyllamacpu.cli.options import checked_argument
from pyllamacpu.cli.output import Screen
from pyllamacpu.cli.saved_chat import Turn
from pyllamacpu.cli.session import ChatSession, Event
from pyllamacpu.errors import PyllamacpuError

PROMPT, MORE = ">>> ", "... "
_QUOTES = '"""'
_INTERRUPTED = 130


def read_message(read_line: ReadLine, remember: Remember = lambda _: None) -> str:
    '''One message: a line, or everything between two `"""`; `remember` gets it as it was typed.'''
    line = read_line(PROMPT)
    if not line.lstrip().startswith(_QUOTES):
        remember(line)
        return line
    text = line.lstrip()[len(_QUOTES) :]
    while not text.rstrip().endswith(_QUOTES):
        try:
            text += "\n" + read_line(MORE)
        except KeyboardInterrupt:
            raise InterruptedLine(_QUOTES + text) from None
    remember(_QUOTES + text)
    return text.rstrip()[: -len(_QUOTES)].strip("\n")


def _as_text(line: str) -> str:
    """A line in which bytes that the terminal's encoding does not know (lone surrogates) are UTF-8 all the
    same. Raises OptionError where they are not; names of files may be any bytes.
    """
    return line if line.split(" ", 1)[0] in FILE_COMMANDS else checked_argument(line, "the line")


class Repl:
    """The loop of an interactive chat."""

    def __init__(
        self,
        session: ChatSession,
        read_line: ReadLine,
        screen: Screen,
        remember: Remember = lambda _: None,
    ) -> None:
        self.session = session
        self.read_line = read_line
        self.remember = remember
        self.screen = screen

    def run(self, first: str | None = None) -> int:
        """Chat until /bye or the end of input (0), or Ctrl-C twice at an empty prompt (130)."""
        if first is not None:
            self.handle(first)
        interrupted = False
        while True:
            try:
                line = read_message(self.read_line, self.remember)
            except EOFError:
                return 0
            except KeyboardInterrupt as interrupt:
                if getattr(interrupt, "text", ""):
                    interrupted = False
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
        before = self._last_turn()
        try:
            line = self._without_images(_as_text(line))
            if not line.strip():
                return True
            if not is_command(line):
                self._answer(self.session.ask(line.strip("\n"), self.screen.on_prompt))
                return True
            reply = run_command(self.session, line, self.screen.on_prompt)
            if reply.text:
                self.screen.note(reply.text)
            if reply.answer:
                self._answer(reply.answer)
            return not reply.leave
        except KeyboardInterrupt:
            self.screen.note(f"[stopped{self._after_stop(before, is_command(line))}]")
        except PyllamacpuError as error:
            self.screen.error(str(error))
        return True

    def _without_images(self, line: str) -> str:
        """A line without the paths of images that were dropped on it, which go with the message. Raises
        ImageError, OptionError.
        """
        if is_known_command(line):
            return line
        paths, rest = dropped_images(line)
        if paths and (self.session.engine.reads_images or is_command(line)):
            for path in paths:
                self.screen.note(self.session.attach(path))
            return rest
        if paths:
            self.screen.note(f"[the model reads no images: it is sent the path of {paths[0].name}]")
        elif not is_command(line) and (why := unshown_picture(line)):
            self.screen.note(f"[the model is sent the path alone: {why}]")
        return line

    def _answer(self, events: Iterator[Event]) -> None:
        before = self._last_turn()
        with keys_not_shown():
            self.screen.answer(events, stats=self.session.show_timings)
        if self._last_turn() is not before and self.session.is_resumable:
            self.screen.note("[not finished: /continue goes on]")

    def _last_turn(self) -> Turn | None:
        return self.session.turns[-1] if self.session.turns else None

    def _after_stop(self, before: Turn | None, was_command: bool) -> str:
        """What can be done after Ctrl-C; `before` was the last turn until then."""
        last = self._last_turn()
        if last is before:
            return "" if was_command else ": the message is not kept"
        if self.session.is_resumable:
            return ": /continue goes on"
        return "" if last is None or last.ended else ": /regen answers again"
