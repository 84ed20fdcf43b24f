"""Python functions as tools of `chat`: their schemas, the person's agreement, rounds of calls.

Covers cli/tool_files.py, cli/toolbox.py, cli/tool_options.py, cli/saved_chat.py.
"""

# ruff: noqa: F811 (fixtures are imported and then used as arguments)

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_letters import LetterLlama, Result, cli_home, letters, run  # noqa: F401
from test_cli_session import LetterEngine, said

from pyllamacpu.cli.line_reader import typed_reply
from pyllamacpu.cli.session import MAX_ROUNDS, ChatSession, Event, Notice, Question
from pyllamacpu.cli.tool_files import PythonTool, load_tools
from pyllamacpu.cli.toolbox import REFUSED, Toolbox
from pyllamacpu.errors import OptionError
from pyllamacpu.sampling.options import SamplingOptions
from pyllamacpu.text.call_forms import ToolCall

FILE = '''
from __future__ import annotations
import sys
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Optional

def weather(city: str, days: int = 1, unit: Literal["C", "F"] = "C") -> str:
    """Tells the weather
    of a city.

    Args:
        city (str): its name, as
            people there write it
        days: how many
    Returns:
        unit: a text
    """
    print("looking")
    return f"{city}: sunny"

def add(a: float, b: float | None, *, more: list[int] = (), by: dict[str, bool] = {}, x: Any = 0, y=0):
    """Adds.
    :param a: one
    :param int b: another
    """
    if b is None:
        sys.exit(3)
    return a + b

def shout(text: Annotated[str, "what to say"], again: Optional[bool] = None) -> dict:
    """Shouts."""
    return {"said": text.upper()}

def helper(x: int) -> int:
    return x

def _private(x: int) -> int:
    """Not shown."""
    return x

@dataclass
class Thing:
    """Not a function."""
    size: int = 3
'''


@pytest.fixture
def tools(tmp_path: Path) -> list[PythonTool]:
    path = tmp_path / "tools.py"
    path.write_text(FILE)
    return load_tools(path)


def test_schemas_come_from_hints_and_docstrings(tools: list[PythonTool]) -> None:
    weather, add, shout = (tool.definition["function"] for tool in tools)
    assert weather == {
        "name": "weather",
        "description": "Tells the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "its name, as people there write it"},
                "days": {"type": "integer", "description": "how many"},
                "unit": {"enum": ["C", "F"]},
            },
            "required": ["city"],
            "additionalProperties": False,
        },
    }
    assert add["description"] == "Adds." and add["parameters"]["required"] == ["a", "b"]
    assert add["parameters"]["properties"] == {
        "a": {"type": "number", "description": "one"},
        "b": {"anyOf": [{"type": "number"}, {"type": "null"}], "description": "another"},
        "more": {"type": "array", "items": {"type": "integer"}},
        "by": {"type": "object", "additionalProperties": {"type": "boolean"}},
        "x": {},
        "y": {},
    }
    assert shout["parameters"]["properties"] == {
        "text": {"type": "string", "description": "what to say"},
        "again": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
    }


@pytest.mark.parametrize(
    "source, message",
    [
        (None, "cannot read"),
        ("def f(:", "line 1"),
        ("import nothing_of_this_name", "ModuleNotFoundError"),
        ("raise SystemExit('no')", "SystemExit: no"),
        ("x = 1", "no public function with a docstring"),
        ("def f(x: complex):\n    'Doc.'", "f: x: complex: JSON has no such type"),
        ("def f(*args):\n    'Doc.'", r"f: \*args cannot be given by name"),
        ("def f(x, /):\n    'Doc.'", "cannot be given by name"),
        ("def f(x: 'Nothing'):\n    'Doc.'", "f: type hints: name 'Nothing'"),
        ("async def f():\n    'Doc.'", "neither async"),
        ("x = '\0'", "tools.py"),
    ],
)
def test_a_bad_file_is_one_clear_line(tmp_path: Path, source: str | None, message: str) -> None:
    path = tmp_path / "tools.py"
    if source is not None:
        path.write_text(source)
    with pytest.raises(OptionError, match=message) as caught:
        load_tools(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_results_and_errors_are_text(tools: list[PythonTool], capsys: pytest.CaptureFixture[str]) -> None:
    weather, add, shout = tools
    assert weather.run('{"city": "Rome"}') == "Rome: sunny"
    assert capsys.readouterr() == ("", "looking\n")  # stdout is for answers
    assert add.run('{"a": 1, "b": 2.5}') == "3.5"
    assert json.loads(shout.run('{"text": "é"}')) == {"said": "É"}
    assert weather.run("{}") == "error: TypeError: missing a required argument: 'city'"
    assert weather.run('{"city": "a", "when": 1}').startswith("error: TypeError")
    assert add.run('{"a": "x", "b": 2}').startswith("error: TypeError")
    assert add.run('{"a": 1, "b": null}') == "error: SystemExit: 3"


# Conversations


class ToolEngine(LetterEngine):
    form: Any = None

    def stream(self, *arguments: Any) -> Iterator[Any]:
        self.forms = [*getattr(self, "forms", []), self.form]
        return super().stream(*arguments)

    def render(self, messages: list[dict[str, Any]]) -> list[int]:
        shown = [{**m, "content": m["content"] + json.dumps(m.get("tool_calls", ""))[1:-1]} for m in messages]
        return super().render(shown)


CALL = '{"name": "weather", "parameters": {"city": "Rome"}}'


def chat(tools: list[PythonTool], *answers: str, **more: Any) -> tuple[ChatSession, ToolEngine]:
    engine = ToolEngine(*answers, n_ctx=4000)
    session = ChatSession(engine, SamplingOptions())
    session.tools = Toolbox(tools, **more)
    return session, engine


def answered(events: Iterator[Event], *replies: str) -> list[Event]:
    """All events; each question gets the next reply."""
    left, found = list(replies), []
    for event in events:
        if isinstance(event, Question):
            event.reply = left.pop(0)
        found.append(event)
    assert not left
    return found


def notes(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Notice)]


def test_a_call_is_run_after_the_person_agrees(tools: list[PythonTool]) -> None:
    session, engine = chat(tools, CALL, "It is sunny.", CALL, "I see.")
    events = answered(session.ask("Weather?"), "y")
    (question,) = [event for event in events if isinstance(event, Question)]
    assert question.text == "run weather(city='Rome')?" and notes(events) == ["weather: Rome: sunny"]
    assert said(iter(events)) == "It is sunny."
    assert engine.prompts[1].startswith("<u>Weather?<a>") and "<t>Rome: sunny<a>" in engine.prompts[1]
    assert session.total.n_generated == len(CALL + "It is sunny.")
    events = answered(session.ask("Again?"), "n")
    assert notes(events) == ["weather was not run"] and REFUSED in engine.prompts[3]
    assert said(iter(events)) == "I see."
    roles = [message["role"] for message in session.messages()]
    assert roles == ["user", "assistant", "tool", "assistant"] * 2


def test_agreement_for_a_function(tools: list[PythonTool]) -> None:
    other = '{"name": "shout", "parameters": {"text": "a"}}'
    session, _ = chat(tools, CALL, CALL, f"{CALL}; {other}", "Done.")
    events = answered(session.ask("Weather?"), "always", "")
    assert [type(event) for event in events].count(Question) == 2  # the second for the other function
    assert notes(events)[1:3] == ["runs weather(city='Rome')", "weather: Rome: sunny"]
    unasked, _ = chat(tools, other, "Done.", unasked=True)
    assert notes(answered(unasked.ask("Shout"))) == ["runs shout(text='a')", 'shout: {"said": "A"}']


def test_calls_have_a_limit(tools: list[PythonTool]) -> None:
    session, engine = chat(tools, *[CALL] * (MAX_ROUNDS + 1), "never", unasked=True)
    events = answered(session.ask("Weather?"))
    assert "are the limit" in notes(events)[-1] and len(engine.prompts) == MAX_ROUNDS + 1
    assert sum(text.startswith("runs") for text in notes(events)) == MAX_ROUNDS


def test_a_choice_holds_for_the_first_answer(tools: list[PythonTool]) -> None:
    session, engine = chat(tools, CALL, "Sunny.", choice="weather", unasked=True)
    answered(session.ask("Weather?"))
    assert [form is not None for form in engine.forms] == [True, False]
    with pytest.raises(OptionError, match="allowed: auto, required, weather"):
        Toolbox(tools, "nothing")


def test_text_and_cut_calls(tools: list[PythonTool]) -> None:
    session, _ = chat(tools, f"Say {CALL}", CALL, unasked=True)
    assert said(session.ask("Weather?")) == f"Say {CALL}"
    session.max_tokens = len(CALL) - 5
    events = answered(session.ask("Weather?"))
    assert notes(events) == ["a call was cut short and is not run"] and not session.turns[-1].ended


def test_a_person_stops_a_function(tools: list[PythonTool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an answer that called functions, what follows their results is gone on with, and nothing before."""
    session, engine = chat(tools, f"{CALL}; {CALL}", "Sunny.", "It is sunny.", unasked=True)
    events = session.ask("Weather?")
    while not (isinstance(event := next(events), Notice) and event.text.startswith("runs")):
        pass
    events.close()  # type: ignore[attr-defined]
    assert not session.turns[-1].ended and not session.is_resumable
    with pytest.raises(OptionError, match="stopped while a function ran; /regen answers again"):
        session.check_resumable()
    engine.answers.insert(0, CALL)
    events = session.regenerate()
    for _ in range(4):
        last = next(events)
    events.close()  # type: ignore[attr-defined]
    assert said(iter([last])) == "u" and session.is_resumable
    assert said(session.resume()) == "It is sunny." and len(session.turns[0].steps) == 2
    assert engine.prompts[-1].endswith("<t>Rome: sunny<a>Su") and session.turns[0].ended


@pytest.mark.parametrize("answer, resumable", [(CALL, False), ('{"nothing": "of this', True)])
def test_a_person_stops_what_may_be_a_call(tools: list[PythonTool], answer: str, resumable: bool) -> None:
    """The beginning of a call is not gone on with; what only looked like one is text that is kept."""
    session, engine = chat(tools, answer)
    session.max_tokens = None
    usual = engine.stream

    def stopped(*arguments: Any) -> Iterator[Any]:
        for number, event in enumerate(usual(*arguments)):
            if number == len(answer) - 2:
                raise KeyboardInterrupt
            yield event

    engine.stream = stopped  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        list(session.ask("Weather?"))
    assert session.is_resumable is resumable
    assert session.turns[-1].assistant == (answer[:-2] if resumable else "")


def test_long_results_are_cut_and_that_is_told(tools: list[PythonTool]) -> None:
    session, engine = chat(tools, CALL.replace("Rome", "R" * 20_000), "Done.", unasked=True)
    engine.size = 100_000
    events = answered(session.ask("Weather?"))
    assert "only 16384 of the result's 20007 characters" in notes(events)[-1]
    assert "[cut: 20007 characters in all]" in engine.prompts[1]


def test_conversations_with_calls_are_saved(tools: list[PythonTool], tmp_path: Path) -> None:
    session, _ = chat(tools, CALL, "Sunny.", unasked=True)
    answered(session.ask("Weather?"))
    session.save(tmp_path / "chat.json")
    loaded, _ = chat(tools)
    loaded.load(tmp_path / "chat.json")
    assert loaded.messages() == session.messages()


def test_nobody_is_asked_where_nobody_is(
    letters: type[LetterLlama], run: Callable[..., Result], tmp_path: Path
) -> None:
    Path("tools.py").write_text(FILE)
    result = run("chat", "-m", "m.gguf", "--tools", "tools.py", stdin=b"Weather?")
    assert result.code == 2 and "--allow-tools runs them unasked" in " ".join(result.err.split())
    for option in (["--allow-tools"], ["--tool-choice", "required"]):
        assert run("chat", "-m", "m.gguf", *option, stdin=b"x").code == 2
    for choice in ("nosuch", ""):
        result = run(
            "chat",
            "-m",
            "m.gguf",
            "--tools",
            "tools.py",
            "--allow-tools",
            "--tool-choice",
            choice,
            stdin=b"x",
        )
        assert result.code == 2 and "allowed: auto, required, weather, add, shout" in result.err
    both = ["--tools", "tools.py", "--allow-tools", "--grammar", 'root ::= "a"']
    assert run("chat", "-m", "m.gguf", *both, stdin=b"x").code == 2
    result = run("chat", "-m", "m.gguf", "--tools", "missing.py", "--allow-tools", stdin=b"x")
    assert result.code == 1 and result.err.count("\n") == 1 and "missing.py" in result.err
    letters.answer = "Nothing to call."
    assert run("chat", "-m", "m.gguf", *both[:3], stdin=b"x").out == "Nothing to call.\n"


def test_a_reply_is_what_is_typed_after_the_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal; keys that were pressed before are thrown away. Without one nobody agrees."""
    keyboard, terminal = os.openpty()
    with open(terminal, encoding="utf-8", closefd=False) as stdin, open(terminal, "w", closefd=False) as out:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys, "stdout", out)
        os.write(keyboard, b"y\n")
        read = type(stdin).readline

        class Typing:
            def readline(self) -> str:
                os.write(keyboard, b"n\n")
                return read(stdin)

            def __getattr__(self, name: str) -> Any:
                return getattr(stdin, name)

        monkeypatch.setattr(sys, "stdin", Typing())
        assert typed_reply("? ") == "n"
    monkeypatch.undo()
    os.close(keyboard)
    os.close(terminal)
    with open(os.devnull) as nobody:
        monkeypatch.setattr(sys, "stdin", nobody)
        assert typed_reply("? ") == ""


def test_the_person_sees_all_of_a_call(tools: list[PythonTool]) -> None:
    box = Toolbox(tools)
    call = ToolCall("weather", json.dumps({"city": "a" * 2000 + "\x1b[2J"}))
    event = next(box.run(call))
    assert isinstance(event, Question) and "a" * 2000 in event.text and "\x1b" not in event.text
