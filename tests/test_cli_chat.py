"""`chat`, with and without a terminal, with a model of letters.

Covers cli/chat.py.
"""

# ruff: noqa: F811 (fixtures are imported and then used as arguments)

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_letters import LetterLlama, LetterTemplate, Piece, Result, cli_home, letters, run  # noqa: F401

from pyllamacpu.cli.line_reader import InterruptedLine
from pyllamacpu.cli.output import Screen
from pyllamacpu.cli.repl import Repl, read_message
from pyllamacpu.cli.session import ChatSession
from pyllamacpu.cli.usage import Usage
from pyllamacpu.sampling.options import SamplingOptions
from pyllamacpu.store.starter import STARTER

pytestmark = pytest.mark.usefixtures("cli_home")

# chat


@pytest.mark.parametrize(
    "args, stdin, prompt",
    [
        ([], b"What is the capital of France?\n", "[user]What is the capital of France?"),
        (["-p", r"one\ntwo"], b"", "[user]one\ntwo"),
        (["-p", "Sum up."], b"A text.\n", "[user]A text.\n\nSum up."),
        (["-sys", "Be brief."], b"Hi", "[system]Be brief.[user]Hi"),
        (["-f", "m.txt", "-st"], b"ignored", r"[user]C:\new"),
        ([], "Grüße 😀".encode(), "[user]Grüße 😀"),
        ([], b"/help", "[user]/help"),
    ],
)
def test_chat_without_a_terminal_prints_only_the_answer(
    args: list[str], stdin: bytes, prompt: str, letters: type[LetterLlama], run: Callable[..., Result]
) -> None:
    Path("m.txt").write_text("C:\\new\n")
    result = run("chat", "-m", "m.gguf", *args, stdin=stdin)
    assert (result.code, result.out, result.err) == (0, "Paris\n", "")
    assert "".join(map(chr, letters.made[0].calls[0][0])) == prompt


def test_the_starter_model_has_its_own_sampling(
    letters: type[LetterLlama], run: Callable[..., Result]
) -> None:
    """Its defaults win over the engine's, what is given wins over both, and other models have none."""
    own = dict(STARTER.sampling)
    Path(STARTER.filename).write_bytes(b"GGUF")
    model = ["chat", "-m", STARTER.filename]
    assert run(*model, stdin=b"Hi").code == 0
    assert run(*model, "--temp", "0.8", stdin=b"Hi").code == 0
    assert run(*model, stdin=b"Hi\n", terminal=True).code == 0
    assert run("chat", "-m", "m.gguf", stdin=b"Hi").code == 0
    once, hot, talk, other = (made.calls[0][1] for made in letters.made)
    assert once == SamplingOptions(**{**own, "temperature": 0.0, "top_p": SamplingOptions().top_p})
    assert hot == SamplingOptions(**{**own, "temperature": 0.8})
    assert talk == SamplingOptions(**own)
    assert other == SamplingOptions()


@pytest.mark.usefixtures("letters")
def test_a_guessed_chat_format_is_told(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LetterTemplate, "warning", "no chat template; using chatml")
    result = run("chat", "-m", "m.gguf", stdin=b"Hi")
    assert (result.out, result.err) == ("Paris\n", "warning: no chat template; using chatml\n")


@pytest.mark.usefixtures("letters")
def test_chat_refuses_what_is_no_text(run: Callable[..., Result]) -> None:
    result = run("chat", "-m", "m.gguf", stdin=b"ok \xff")
    assert result.code == 1 and "stdin is not UTF-8: byte 0xff at 3" in result.err


def test_chat_of_several_lines_on_a_terminal(
    letters: type[LetterLlama], run: Callable[..., Result], capsys: pytest.CaptureFixture[str]
) -> None:
    """Stdin is a terminal and stdout is none: plain lines, no control codes, notes on stderr."""
    lines = b'Hi\n"""one\ntwo"""\n/set temp 0\n/nonsense\n/bye\nnever read\n'
    result = run("chat", "-m", "m.gguf", "-p", "first", stdin=lines, terminal=True)
    assert result.code == 0
    assert result.out == "Paris\nParis\nParis\n"
    assert "\x1b" not in result.out + result.err
    assert "unknown command /nonsense" in result.err and "temperature = 0.0" in result.err
    assert "Letters" in result.err and "tokens/s" in result.err
    prompts = ["".join(map(chr, call[0])) for call in letters.made[0].calls]
    assert prompts[0] == "[user]first"
    assert prompts[2].endswith("[assistant]Paris[user]one\ntwo")


def test_end_of_input_ends_the_chat(letters: type[LetterLlama], run: Callable[..., Result]) -> None:
    assert run("chat", "-m", "m.gguf", stdin=b"", terminal=True).code == 0
    assert letters.made[0].calls == []


@pytest.mark.parametrize("typed", [b"a\xff\n", b"/system \xc3\n", b'"""\nx\n\xfe"""\n'])
def test_a_typed_line_that_is_not_utf_8_is_told_and_not_sent(
    typed: bytes, letters: type[LetterLlama], run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    result = run("chat", "-m", "m.gguf", stdin=typed + b"two\n", terminal=True)
    assert result.code == 0
    assert "the line is not UTF-8: byte 0x" in result.out + result.err
    assert len(letters.made[0].calls) == 1


@pytest.mark.usefixtures("letters")
def test_utf_8_from_a_terminal_of_another_encoding_is_text() -> None:
    loop, _, _ = repl(Script("é日".encode().decode("ascii", "surrogateescape")))
    assert loop.run() == 0
    assert loop.session.turns[0].user == "é日"


class Script:
    """Lines as a person types them; exceptions are keys."""

    def __init__(self, *lines: str | BaseException) -> None:
        self.lines, self.prompts = list(lines), []

    def __call__(self, prompt: str) -> str:
        self.prompts.append(prompt)
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        if isinstance(line, BaseException):
            raise line
        return line


def repl(script: Script, answer: str = "ok") -> tuple[Repl, io.StringIO, Any]:
    from pyllamacpu.cli.chat_engine import ChatEngine

    class Made(LetterLlama):
        made: list[LetterLlama] = []  # noqa: RUF012

    Made.answer = answer
    engine = ChatEngine(Made("m"))  # type: ignore[arg-type]
    out = io.StringIO()
    return Repl(ChatSession(engine, SamplingOptions()), script, Screen(out)), out, engine


@pytest.mark.usefixtures("letters")
def test_interrupts_at_the_prompt() -> None:
    interrupt = InterruptedLine("")
    assert repl(Script(interrupt, interrupt))[0].run() == 130
    assert repl(Script(interrupt, "hello", interrupt, InterruptedLine("half a line")))[0].run() == 0
    assert repl(Script(KeyboardInterrupt(), KeyboardInterrupt()))[0].run() == 130
    assert repl(Script("", "   "))[0].run() == 0


@pytest.mark.usefixtures("letters")
@pytest.mark.parametrize("keys", [("",), ()])
def test_an_interrupt_in_a_message_of_several_lines_does_not_leave(keys: tuple[str, ...]) -> None:
    """It is not one at an empty prompt, whatever was pressed before it, or is after it."""

    def key() -> KeyboardInterrupt:
        return InterruptedLine(*keys) if keys else KeyboardInterrupt()

    chat, out, _ = repl(Script(key(), '"""', "one", key(), "Hi"))
    assert chat.run() == 0 and out.getvalue() == "ok\n"
    assert [turn.user for turn in chat.session.turns] == ["Hi"]
    assert repl(Script('"""', key(), key(), "Hi"))[0].run() == 0
    assert repl(Script('"""', key(), key(), key(), "Hi"))[0].run() == 130


@pytest.mark.usefixtures("letters")
@pytest.mark.parametrize("unfinished", [False, True])
def test_a_message_that_is_stopped_before_its_answer(
    unfinished: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is said is about this message, not about the answer before it."""
    chat, _, engine = repl(Script())
    assert chat.handle("Hi")
    chat.session.turns[-1].ended = not unfinished

    def interrupted(*args: Any) -> Iterator[Piece]:
        raise KeyboardInterrupt
        yield

    capsys.readouterr()
    monkeypatch.setattr(engine, "stream", interrupted)
    assert chat.handle("again")
    assert capsys.readouterr().err == "[stopped: the message is not kept]\n"
    assert chat.handle("/regen") and capsys.readouterr().err == "[stopped]\n"
    assert [(turn.user, turn.assistant) for turn in chat.session.turns] == [("Hi", "ok")]


@pytest.mark.usefixtures("letters")
def test_what_cannot_be_gone_on_with_is_not_offered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chat, _, engine = repl(Script(), answer="a long answer")
    chat.session.has_form = True

    def interrupted(*args: Any) -> Iterator[Piece]:
        yield Piece("a long", (1,))
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "stream", interrupted)
    assert chat.handle("again")
    assert capsys.readouterr().err == "[stopped: /regen answers again]\n"


@pytest.mark.usefixtures("letters")
def test_interrupt_stops_the_answer_and_not_the_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chat, out, engine = repl(Script("Hi", "again"), answer="a long answer")

    def interrupted(*args: Any) -> Iterator[Piece]:
        yield Piece("a long", (1,))
        raise KeyboardInterrupt

    usual = engine.stream
    monkeypatch.setattr(engine, "stream", interrupted)
    assert chat.handle("Hi")
    monkeypatch.setattr(engine, "stream", usual)
    assert chat.handle("again")
    assert [(turn.user, turn.assistant) for turn in chat.session.turns] == [
        ("Hi", "a long"),
        ("again", "a long answer"),
    ]
    assert out.getvalue().endswith("a long answer\n")
    assert "[stopped: /continue goes on]" in capsys.readouterr().err


@pytest.mark.usefixtures("letters")
def test_an_error_does_not_end_the_chat(capsys: pytest.CaptureFixture[str]) -> None:
    chat, out, _ = repl(Script("x" * 2000, "Hi"))
    assert chat.run() == 0
    assert "the context holds 1000" in capsys.readouterr().err
    assert out.getvalue() == "ok\n"


def test_a_message_of_several_lines_is_one_entry_of_the_history() -> None:
    kept: list[str] = []
    script = Script("one line", '"""', "two", 'three"""', "/help")
    for _ in range(3):
        read_message(script, kept.append)
    assert kept == ["one line", '"""\ntwo\nthree"""', "/help"]
    assert read_message(Script(kept[1])) == "two\nthree", "recalled, it is the same message"


def test_read_message() -> None:
    script = Script('"""', "one", "  two", '"""')
    assert read_message(script) == "one\n  two"
    assert script.prompts == [">>> ", "... ", "... ", "... "]
    assert read_message(Script('"""on one line"""')) == "on one line"
    assert read_message(Script('say """ this')) == 'say """ this'
    assert read_message(Script('"""', "", "x", "", '"""')) == "x"
    with pytest.raises(EOFError):
        read_message(Script('"""', "one"))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.usefixtures("letters")
def test_on_a_terminal_notes_are_dim_and_control_codes_are_disarmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    chat, _, _ = repl(Script(), answer="a\x1b[2J\x07\tb\n")
    chat.screen = Screen(Terminal())
    chat.handle("Hi")
    shown = chat.screen.out.getvalue()  # type: ignore[attr-defined]
    assert shown.startswith("a\ufffd[2J\ufffd\tb\n\x1b[2mprompt ")
    monkeypatch.setenv("NO_COLOR", "1")
    chat.screen = Screen(Terminal())
    chat.handle("/help")
    assert "\x1b" not in chat.screen.out.getvalue()  # type: ignore[attr-defined]


def test_progress_line_for_a_long_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    screen = Screen(Terminal())
    screen.on_prompt(0, 4000)
    screen.on_prompt(10, 4000)
    assert screen.out.getvalue() == ""  # type: ignore[attr-defined]
    now[0] += 1
    screen.on_prompt(2000, 4000)
    assert "reading the prompt: 2000 of 4000 tokens" in screen.out.getvalue()  # type: ignore[attr-defined]
    screen.text("answer ")
    assert screen.out.getvalue().endswith("\r\x1b[Kanswer")  # type: ignore[attr-defined]
    screen.on_prompt(3000, 4000)
    monkeypatch.setenv("COLUMNS", "20")
    screen.on_prompt(3000, 4000)
    assert screen.out.getvalue().endswith("\r\x1b[Kreading the prompt:")  # type: ignore[attr-defined]


def test_no_progress_where_nobody_looks() -> None:
    screen = Screen(io.StringIO())
    screen.answer(iter(()))
    screen._began -= 100
    screen.on_prompt(5, 10)
    assert screen.out.getvalue() == ""  # type: ignore[attr-defined]


@pytest.mark.usefixtures("letters")
@pytest.mark.parametrize("width", [5, 8, 11, 20, 79, 80])
def test_words_are_whole_at_any_width(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer comes letter by letter; what is on the screen has every word on one line."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    text = "Paris is the capital and the most populous city of France.\n\n1. Seine\n2. Loire"
    chat, _, _ = repl(Script(), answer=text)
    chat.session.show_timings = False
    chat.screen = Screen(Terminal())
    chat.handle("Hi")
    shown = chat.screen.out.getvalue()  # type: ignore[attr-defined]
    assert shown.split() == text.split()
    assert all(len(line) <= width or " " not in line for line in shown.split("\n"))
    assert shown.endswith("Loire\n")


@pytest.mark.usefixtures("letters")
def test_the_speed_line_is_printed_once_or_not_at_all(
    run: Callable[..., Result], letters: type[LetterLlama]
) -> None:
    args = ["chat", "-m", "m.gguf", "-v"]
    shown = run(*args, stdin=b"Hi\n", terminal=True).err
    assert shown.count("tokens/s") == 2 and letters.made[-1].arguments["verbose"] is False  # one line
    assert "tokens/s" not in run(*args, "--no-show-timings", stdin=b"Hi\n", terminal=True).err
    assert "tokens/s" not in run(*args[:3], stdin=b"/set show_timings off\nHi\n", terminal=True).err


def test_the_banner_names_the_file(letters: type[LetterLlama], run: Callable[..., Result]) -> None:
    assert run("chat", "-m", "m.gguf", terminal=True).err.startswith("Letters (m.gguf), context 1000 tokens.")


def test_nobody_is_warned_of_the_starters_own_settings(
    letters: type[LetterLlama], run: Callable[..., Result]
) -> None:
    Path(STARTER.filename).write_bytes(b"GGUF")
    assert run("chat", "-m", STARTER.filename, "--temp", "0", stdin=b"Hi").err == ""
    given = run("chat", "-m", STARTER.filename, "--temp", "0", "--top-p", "0.5", stdin=b"Hi").err
    assert given == "warning: top_p does nothing at temperature 0\n"


@pytest.mark.usefixtures("letters")
def test_an_unfinished_answer_is_said(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    chat, _, _ = repl(Script(), answer="one two")

    def looping(*args: Any) -> Iterator[Piece]:
        yield Piece("one", (1,))
        yield Piece("", (), "loop", Usage(1, 0, 1, 1.0, 1.0))

    monkeypatch.setattr(chat.session.engine, "stream", looping)
    chat.handle("Hi")
    err = capsys.readouterr().err
    assert "[stopped: the answer repeats itself (--no-stop-loops lets it)]" in err and "/continue" in err


def test_loops_are_stopped_unless_asked_for(letters: type[LetterLlama], run: Callable[..., Result]) -> None:
    for more in ([], ["--ignore-eos"], ["--no-stop-loops"], ["--ignore-eos", "--stop-loops"]):
        run("chat", "-m", "m.gguf", *more, stdin=b"Hi")
        run("complete", "-m", "m.gguf", *more, "-p", "Hi")
    assert [made.loops for made in letters.made] == [True, True, False, False, False, False, True, True]


def test_the_chat_format_ends_answers_too(letters: type[LetterLlama], run: Callable[..., Result]) -> None:
    assert run("chat", "-m", "m.gguf", "-r", "Q:", stdin=b"Hi").code == 0
    assert letters.made[0].calls[0][3] == ("Q:", "USER:")
    assert letters.made[0].ends == [frozenset({2})]


def test_two_system_prompts_are_refused(run: Callable[..., Result], letters: type[LetterLlama]) -> None:
    Path("s.txt").write_text("Be brief.")
    result = run("chat", "-m", "m.gguf", "-sys", "Be kind.", "-sysf", "s.txt", stdin=b"Hi")
    assert result.code == 2 and "-sys and -sysf" in result.err and not letters.made
