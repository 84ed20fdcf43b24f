"""What becomes of turns that are taken back, stopped, saved and loaded; and commands with odd arguments.

Covers cli/saved_chat.py, and of cli/session.py and cli/commands.py what has to do with these.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_engine import FakeEngine
from test_cli_session import LetterEngine, said, session
from tiny_model import EOS, byte, vocabulary

from pyllamacpu.cli.commands import COMMAND_NAMES, OWN_SETTINGS, run_command
from pyllamacpu.cli.saved_chat import Turn, read_saved
from pyllamacpu.cli.session import ChatSession, Notice
from pyllamacpu.engine.driver import Driver
from pyllamacpu.engine.generate import Request
from pyllamacpu.engine.scheduler import Scheduler
from pyllamacpu.errors import OptionError, PyllamacpuError
from pyllamacpu.sampling.options import OPTION_ALIASES, SamplingOptions
from pyllamacpu.text import load_tokenizer

# Turns that are dropped for room


def filled() -> tuple[ChatSession, LetterEngine, list[int]]:
    """A conversation of 8 turns in a context of 200 tokens, and how many were dropped before each."""
    chat, engine = session(*["y" * 20] * 20, n_ctx=200)
    dropped = []
    for number in range(8):
        dropped.append(chat.n_dropped)
        list(chat.ask(f"message {number} " + "x" * 10))
    assert chat.n_dropped > dropped[-3] > 0
    return chat, engine, dropped


def test_undo_brings_back_what_had_to_go_for_the_message() -> None:
    chat, _, dropped = filled()
    for number in range(7, -1, -1):
        chat.undo()
        assert chat.n_dropped == dropped[number]


def test_what_comes_back_is_in_the_next_prompt() -> None:
    chat, engine, _ = filled()
    for _ in range(6):
        chat.undo()
    list(chat.ask("again"))
    assert chat.n_dropped == 0 and "message 0" in engine.prompts[-1] and "message 1" in engine.prompts[-1]


def test_regen_has_the_prompt_that_the_message_had() -> None:
    chat, engine, _ = filled()
    list(chat.ask("x" * 60))
    dropped = chat.n_dropped
    list(chat.regenerate())
    assert engine.prompts[-1] == engine.prompts[-2] and chat.n_dropped == dropped


def test_what_is_not_answered_again_brings_nothing_back() -> None:
    chat, _, _ = filled()
    list(chat.ask("x" * 60))
    dropped, turns = chat.n_dropped, list(chat.turns)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(chat.regenerate(interrupt))
    assert chat.n_dropped == dropped and chat.turns == turns


def test_continue_leaves_the_prompt_as_it_was() -> None:
    chat, engine = session(*["y" * 20] * 4, "z" * 15, n_ctx=200, max_tokens=20)
    for number in range(4):
        list(chat.ask(f"message {number} " + "x" * 10))
    chat.max_tokens = 5
    list(chat.ask("message"))
    assert chat.n_dropped == 1
    events = list(chat.resume())
    assert engine.prompts[-1].startswith(engine.prompts[-2])
    assert not any(isinstance(event, Notice) for event in events)


# Saved conversations


CALL: dict[str, Any] = {
    "role": "assistant",
    "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}
RESULT = {"role": "tool", "tool_call_id": "a", "content": "3"}
OLD_CALL = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    "steps",
    [
        [CALL, RESULT],
        [CALL | {"content": None}, RESULT],
        [CALL | {"content": None}, RESULT | {"content": None}],
        [CALL | {"content": None}, RESULT | {"content": [{"type": "text", "text": "3"}]}],
        [OLD_CALL, {"role": "function", "name": "f", "content": "3"}],
    ],
)
def test_messages_of_the_api_are_loaded(steps: list[dict[str, Any]], tmp_path: Path) -> None:
    talk = [
        {"role": "developer", "content": [{"type": "text", "text": "Short."}]},
        {"role": "user", "content": "Sum?"},
        *steps,
        {"role": "assistant", "content": [{"type": "text", "text": "3."}]},
    ]
    (tmp_path / "talk.json").write_text(json.dumps(talk))
    system, turns = read_saved(tmp_path / "talk.json")
    assert system == "Short." and [turn.assistant for turn in turns] == ["3."]
    assert [step["content"] for step in turns[0].steps] == ["", "3" if steps[1]["content"] else ""]


def test_an_unfinished_answer_is_saved_as_such(tmp_path: Path) -> None:
    chat, _ = session("abcdef", max_tokens=3)
    list(chat.ask("Hi"))
    run_command(chat, f"/save {tmp_path / 'talk.json'}")
    other, engine = session("def")
    text = run_command(other, f"/load {tmp_path / 'talk.json'}").text
    assert text.endswith("its last answer is not finished: /continue goes on")
    assert said(other.resume()) == "def" and engine.prompts == ["<u>Hi<a>abc"]
    run_command(other, f"/save {tmp_path / 'talk.json'}")
    assert "unfinished" not in json.loads((tmp_path / "talk.json").read_text())
    assert "not finished" not in run_command(chat, f"/load {tmp_path / 'talk.json'}").text
    with pytest.raises(OptionError, match="ended by itself"):
        run_command(chat, "/continue")


@pytest.mark.parametrize("command", ["/regen", "/continue"])
def test_a_message_without_an_answer_is_answered(tmp_path: Path, command: str) -> None:
    (tmp_path / "f").write_text('[{"role": "user", "content": "Hi"}]')
    chat, engine = session("Hello!")
    assert "no answer yet: /regen answers it" in run_command(chat, f"/load {tmp_path / 'f'}").text
    answer = run_command(chat, command).answer
    assert answer is not None and said(answer) == "Hello!" and engine.prompts == ["<u>Hi<a>"]


def call(calls: Any, role: str = "assistant") -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": "Hi"},
        {"role": role, "content": "", "tool_calls": calls},
        {"role": "assistant", "content": "Hello!"},
    ]


@pytest.mark.parametrize(
    "calls",
    [
        5,
        True,
        "add",
        {"function": {"name": "add", "arguments": "{}"}},
        [5],
        [{}],
        [{"function": 5}],
        [{"function": {"name": 5, "arguments": "{}"}}],
        [{"function": {"name": "add", "arguments": 5}}],
        [{"function": {"name": "add"}}],
    ],
)
def test_damaged_calls_are_refused(tmp_path: Path, calls: Any) -> None:
    (tmp_path / "f").write_text(json.dumps(call(calls)))
    chat, _ = session("one")
    with pytest.raises(OptionError, match=r"message 2: .tool_calls. must be a list of calls"):
        run_command(chat, f"/load {tmp_path / 'f'}")
    assert chat.turns == []


def test_only_assistants_call(tmp_path: Path) -> None:
    calls = [{"function": {"name": "add", "arguments": "{}"}}]
    (tmp_path / "f").write_text(json.dumps(call(calls, role="user")))
    with pytest.raises(OptionError, match="message 2 is from user, expected assistant"):
        run_command(session()[0], f"/load {tmp_path / 'f'}")
    (tmp_path / "f").write_text(json.dumps(call(calls)))
    chat, _ = session()
    run_command(chat, f"/load {tmp_path / 'f'}")
    assert chat.turns[0].steps[0]["tool_calls"] == calls


def test_a_device_is_not_loaded() -> None:
    with pytest.raises(OptionError, match="cannot read /dev/null: not a regular file"):
        run_command(session()[0], "/load /dev/null")


# Answers that cannot be gone on with


def test_an_answer_with_a_form_is_not_gone_on_with() -> None:
    chat, _ = session("abcdef", "ab", max_tokens=3)
    chat.has_form = True
    list(chat.ask("Hi"))
    assert not chat.is_resumable
    with pytest.raises(OptionError, match="a grammar or a schema cannot be gone on with; /regen"):
        run_command(chat, "/continue")


# Commands

ODD = (
    *("'", '"', "\\", 'a"b', "\0", "/x\0y", "\udcff", "~nobody/x", "x" * 5000, "/" + "x" * 300, "\u2028"),
    *("-1", "9" * 30, "9" * 5000, "nan", "inf", "-inf", "1e999", "\xb2", "\u0663", "1,2", ";;", "%s", "{}"),
    *("[", "\\x", "\\xff", "'\\xff'", "\\u", "''", "none", ":", ":1", "a:1", "5+", "+5", "1+nan"),
    *("9" * 5000 + "+1", "9" * 5000 + " 1", "0 1", "0 nan", "0 on", ".", "..", "/", "--force", "--force /"),
    *("file://[", "/dev/null", "a\tb", "1-inf 1+1"),
)


def commands() -> Iterator[str]:
    names = [field.name for field in fields(SamplingOptions)] + [*OPTION_ALIASES, *OWN_SETTINGS]
    names += ["parameter", "system", "n_predict", "num_ctx", "sampling_seq", "dry_sequence_breaker", '"', ""]
    for odd in ODD:
        yield f"/{odd}"
        yield from (f"{command} {odd}" for command in COMMAND_NAMES)
        yield from (f"/set {name} {odd}" for name in names)


def test_no_command_fails_but_with_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    adapter = SimpleNamespace(name="one", rank=1, pairs=(), path="one.gguf")
    nothing: Callable[..., Any] = lambda *_: None  # noqa: E731
    for line in commands():
        chat, engine = session("one", "two")
        more = {"adapters": [(adapter, 1.0)], "set_adapters": nothing, "load_adapters": nothing}
        vars(engine).update(more, describe=lambda image: image.name)
        list(chat.ask("Hi"))
        try:
            run_command(chat, line)
        except PyllamacpuError:
            pass
        except Exception as error:
            pytest.fail(f"{line!r:.80}: {error!r:.200}")


@pytest.mark.parametrize("value", ['"', "'", "a'b", "\\"])
def test_a_quote_that_is_not_closed(value: str) -> None:
    chat, _ = session()
    with pytest.raises(OptionError, match=r"no (closing quotation|escaped character); write a quote as"):
        run_command(chat, f"/set dry_sequence_breaker {value}")
    run_command(chat, "/set dry_sequence_breaker '\"' '\\\\'")
    assert chat.options.dry_sequence_breakers == ('"', "\\")


# Answers that are cut inside a character


class ByteEngine(LetterEngine):
    """Says UTF-8 byte by byte, as models do with letters that are no token of theirs."""

    def __init__(self, answer: bytes, n_ctx: int) -> None:
        super().__init__(n_ctx=n_ctx)
        made = load_tokenizer(vocabulary())
        assert made is not None
        self.tokenizer, self.answer, self.n_streams = made, [*map(byte, answer), EOS], 0

    def stream(self, prompt: list[int], options: Any, max_tokens: int | None, *rest: Any) -> Iterator[Any]:
        n_said = rest[2]
        self.n_streams += 1
        engine = FakeEngine(self.answer[n_said:], n_prompt=len(prompt), n_ctx=self.size)
        request = Request(prompt, SamplingOptions(temperature=0.0), max_tokens, n_said=n_said)
        stream = Driver(Scheduler(engine, self.tokenizer)).submit(request)
        while not (event := stream.next()).is_last:
            yield event.text
        yield event.text


def test_a_context_that_fills_up_inside_a_character_loses_none() -> None:
    answer = "日本語😀" * 20
    chat = ChatSession(ByteEngine(answer.encode(), 300), SamplingOptions())
    chat.turns = [Turn("x" * 20, "y" * 20) for _ in range(3)]
    assert said(chat.ask("Hi")) == answer == chat.turns[-1].assistant
    assert chat.n_dropped and chat.engine.n_streams > 1


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_an_answer_is_continued_inside_a_character(n: int) -> None:
    answer = "é日😀"
    chat = ChatSession(ByteEngine(answer.encode(), 500), SamplingOptions(), max_tokens=n)
    shown = said(chat.ask("Hi"))
    while chat.is_resumable:
        shown += said(chat.resume())
    assert shown == answer == chat.turns[-1].assistant
