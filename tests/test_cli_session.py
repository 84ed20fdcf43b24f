"""The conversation behind the chat: turns, a context that fills up, commands; with an engine of letters."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pyllamacpu.cli.commands import COMMAND_NAMES, HELP, is_command, run_command, usage_text
from pyllamacpu.cli.session import ChatSession, Event, Finished, Notice, Text, Turn
from pyllamacpu.cli.usage import Usage
from pyllamacpu.errors import ContextError, OptionError, OutputError
from pyllamacpu.sampling.options import SamplingOptions


@dataclass(frozen=True)
class Piece:
    """An event of the engine."""

    text: str
    tokens: tuple[int, ...] = ()
    finish_reason: str | None = None
    stats: Usage | None = None


class LetterEngine:
    """A model whose tokens are letters. It says the next of `answers`, and goes on where it was cut off."""

    def __init__(self, *answers: str, n_ctx: int = 1000) -> None:
        self.answers = list(answers)
        self.size = n_ctx
        self.prompts: list[str] = []
        self.options: list[Any] = []
        self.closed = 0

    stop_loops = True
    reads_images = False
    own_system: str | None = None

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def default_system(self) -> str | None:
        return self.own_system

    def title(self) -> str:
        return "letters"

    def n_ctx(self) -> int:
        return self.size

    def render(self, messages: list[dict[str, str]]) -> list[int]:
        frame = "".join(f"<{message['role'][0]}>{message['content']}" for message in messages)
        return [ord(letter) for letter in frame + "<a>"]

    def stream(
        self,
        prompt: list[int],
        options: Any,
        max_tokens: int | None,
        stop: Sequence[str],
        on_prompt: Any,
        n_said: int,
    ) -> Iterator[Piece]:
        self.prompts.append("".join(map(chr, prompt)))
        assert n_said == len(self.prompts[-1]) - 3 - self.prompts[-1].rfind("<a>")
        self.options.append(options)
        assert len(prompt) < self.size, "the session let a prompt through that does not fit"
        if on_prompt:
            on_prompt(0, len(prompt))
            on_prompt(len(prompt), len(prompt))
        answer = self.answers.pop(0)
        room = self.size - len(prompt)
        said = answer[: room if max_tokens is None else min(max_tokens, room)]
        if said != answer:
            self.answers.insert(0, answer[len(said) :])
        try:
            for letter in said:
                yield Piece(letter, (ord(letter),))
        finally:
            self.closed += 1
        reason = "stop" if said == answer else "length"
        yield Piece("", (), reason, Usage(len(prompt), 0, len(said), 0.5, 2.0))


def session(*answers: str, n_ctx: int = 1000, **more: Any) -> tuple[ChatSession, LetterEngine]:
    engine = LetterEngine(*answers, n_ctx=n_ctx)
    return ChatSession(engine, SamplingOptions(), **more), engine


def said(events: Iterator[Event]) -> str:
    """The text of an answer."""
    return "".join(event.text for event in events if isinstance(event, Text))


def test_turns_build_the_prompt() -> None:
    chat, engine = session("Hello!", "Fine.", system="Be kind.")
    events = list(chat.ask("Hi"))
    assert said(iter(events)) == "Hello!"
    assert isinstance(events[-1], Finished) and events[-1].reason == "stop"
    assert said(chat.ask("How are you?")) == "Fine."
    assert engine.prompts[1] == "<s>Be kind.<u>Hi<a>Hello!<u>How are you?<a>"
    assert chat.turns == [Turn("Hi", "Hello!"), Turn("How are you?", "Fine.")]
    assert chat.total.n_generated == len("Hello!Fine.") and chat.last.generate_rate == 2.5


def test_progress_is_passed_on() -> None:
    chat, _ = session("x")
    seen: list[tuple[int, int]] = []
    list(chat.ask("Hi", lambda done, total: seen.append((done, total))))
    assert seen == [(0, 8), (8, 8)]


def test_a_stopped_answer_stays_as_far_as_it_came() -> None:
    chat, engine = session("A long answer", "next")
    events = chat.ask("Hi")
    assert [next(events).text for _ in range(3)] == ["A", " ", "l"]  # type: ignore[union-attr]
    events.close()  # type: ignore[attr-defined]
    assert engine.closed == 1
    assert chat.turns == [Turn("Hi", "A l")]
    assert chat.last.n_generated == 3 and chat.last.generate_seconds > 0


def test_stopped_before_the_first_word_forgets_the_message() -> None:
    chat, _ = session("x")

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(chat.ask("Hi", interrupt))
    assert chat.turns == []


def test_regenerate_replaces_the_last_answer() -> None:
    chat, engine = session("one", "two")
    list(chat.ask("Hi"))
    assert said(chat.regenerate()) == "two"
    assert engine.prompts[0] == engine.prompts[1]
    assert chat.turns == [Turn("Hi", "two")]


def test_regenerate_keeps_the_old_answer_if_nothing_new_comes() -> None:
    chat, _ = session("one", "two")
    list(chat.ask("Hi"))

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(chat.regenerate(interrupt))
    assert chat.turns == [Turn("Hi", "one")]
    chat.clear()
    with pytest.raises(OptionError, match="no answer yet"):
        list(chat.regenerate())


def test_regenerate_with_a_fixed_seed_gives_another_answer() -> None:
    chat, engine = session("one", "two", "three", "four")
    chat.options = SamplingOptions(seed=7)
    list(chat.ask("Hi"))
    list(chat.regenerate())
    list(chat.regenerate())
    list(chat.ask("Next"))
    assert [options.seed for options in engine.options] == [7, 8, 9, 7]


def test_oldest_turns_are_dropped_whole_and_it_is_said() -> None:
    chat, engine = session(*["y" * 20] * 10, n_ctx=200)
    notices = []
    for number in range(8):
        events = list(chat.ask(f"message {number} " + "x" * 10))
        notices += [event.text for event in events if isinstance(event, Notice)]
        assert said(iter(events)) == "y" * 20
    assert notices and all("oldest turn" in text for text in notices)
    assert all(prompt.startswith("<u>message ") for prompt in engine.prompts)
    assert chat.turns[-1].user.startswith("message 7")
    assert chat.turns[0].user.startswith("message 0"), "what the prompt no longer has is not forgotten"
    assert 0 < chat.n_dropped < 8 and f"8 ({chat.n_dropped} no longer" in run_command(chat, "/stats").text
    assert not engine.prompts[-1].startswith("<u>message 0")


def test_dropping_makes_room_for_a_while() -> None:
    chat, _ = session(*["y" * 10] * 40, n_ctx=400)
    drops = []
    for number in range(30):
        events = list(chat.ask(f"{number:4d}"))
        drops.append(any(isinstance(event, Notice) for event in events))
    assert any(drops) and not any(a and b for a, b in pairwise(drops))


def test_an_answer_goes_on_when_the_context_fills_up_meanwhile() -> None:
    long = "".join(chr(ord("a") + number % 26) for number in range(120))
    chat, engine = session("short answer " * 4, long, n_ctx=200)
    list(chat.ask("first question"))
    events = list(chat.ask("second question"))
    assert said(iter(events)) == long
    assert any(isinstance(event, Notice) and "dropped" in event.text for event in events)
    assert chat.turns[-1] == Turn("second question", long) and chat.n_dropped == 1
    assert chat.last.n_generated == len(long)
    assert engine.prompts[-1].startswith("<u>second question<a>abc")


def test_an_answer_that_fills_the_whole_context_ends_and_says_so() -> None:
    chat, _ = session("z" * 500, n_ctx=100)
    events = list(chat.ask("Hi"))
    assert said(iter(events)) == "z" * 92
    assert [event.text for event in events if isinstance(event, Notice)] == [
        "the context of 100 tokens is full; the answer ends here"
    ]
    assert isinstance(events[-1], Finished) and events[-1].reason == "length"


def test_a_limit_is_no_full_context() -> None:
    chat, engine = session("abcdef", "x", n_ctx=100, max_tokens=3)
    events = list(chat.ask("Hi"))
    assert said(iter(events)) == "abc"
    assert not any(isinstance(event, Notice) for event in events)
    assert len(engine.prompts) == 1


def test_a_message_longer_than_the_context_changes_nothing() -> None:
    chat, engine = session("one", n_ctx=100)
    list(chat.ask("Hi"))
    with pytest.raises(ContextError, match="the context holds 100"):
        list(chat.ask("x" * 200))
    assert chat.turns == [Turn("Hi", "one")]
    assert len(engine.prompts) == 1


# Going on with an answer


def test_continue_after_a_limit() -> None:
    """Each go has the limit anew, and goes on exactly where the last one stopped."""
    chat, engine = session("abcdefgh", "never", n_ctx=100, max_tokens=3)
    list(chat.ask("Hi"))
    answer = run_command(chat, "/continue").answer
    assert answer is not None and said(answer) == "def"
    assert engine.prompts[-1] == "<u>Hi<a>abc"
    assert said(chat.resume()) == "gh"
    assert chat.turns == [Turn("Hi", "abcdefgh")] and chat.last.n_generated == 2
    with pytest.raises(OptionError, match="ended by itself"):
        run_command(chat, "/continue")


def test_continue_after_a_full_context() -> None:
    """The beginning of the answer leaves the prompt, and that is said once; the text stays whole."""
    long = "".join(chr(ord("a") + number % 26) for number in range(300))
    chat, engine = session(long, n_ctx=100)
    first = said(chat.ask("Hi"))
    events = list(chat.resume())
    assert any(isinstance(event, Notice) and "no longer sees" in event.text for event in events)
    assert engine.prompts[-1].startswith("<u>Hi<a>") and engine.prompts[-1].endswith(first[-10:])
    assert chat.turns == [Turn("Hi", first + said(iter(events)))]
    assert chat.context_used() == 100
    while not chat.turns[-1].ended:
        list(chat.resume())
    assert chat.turns == [Turn("Hi", long)]


def test_continue_what_a_person_stopped_and_nothing_else() -> None:
    chat, engine = session("A long answer", "rest")
    with pytest.raises(OptionError, match="no answer yet"):
        run_command(chat, "/continue")
    events = chat.ask("Hi")
    next(events), next(events)
    events.close()  # type: ignore[attr-defined]
    assert said(chat.resume()) == "rest" and engine.prompts[-1] == "<u>Hi<a>A "
    assert chat.turns == [Turn("Hi", "A rest")]


def test_stopped_before_it_goes_on_keeps_the_answer() -> None:
    chat, _ = session("abcdef", max_tokens=3)
    list(chat.ask("Hi"))

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(chat.resume(interrupt))
    assert chat.turns == [Turn("Hi", "abc")] and said(chat.resume()) == "def"


def test_save_keeps_what_the_prompt_no_longer_has(tmp_path: Path) -> None:
    chat, _ = session(*["y" * 20] * 10, n_ctx=200)
    for number in range(8):
        list(chat.ask(f"message {number} " + "x" * 10))
    run_command(chat, f"/save {tmp_path / 'talk.json'}")
    stored = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))["messages"]
    assert [m["content"][:9] for m in stored if m["role"] == "user"] == [f"message {n}" for n in range(8)]
    other, engine = session("ok", n_ctx=200)
    run_command(other, f"/load {tmp_path / 'talk.json'}")
    list(other.ask("and now?"))
    assert other.n_dropped > 0 and len(other.turns) == 9 and len(engine.prompts[-1]) < 200


# Commands


def test_switches() -> None:
    chat, engine = session()
    assert run_command(chat, "/set stop_loops off").text == "stop_loops = off" and not engine.stop_loops
    assert run_command(chat, "/set stop-loops ON").text == "stop_loops = on" and engine.stop_loops
    run_command(chat, "/set show_timings off")
    assert chat.show_timings is False
    assert "show_timings" in run_command(chat, "/set").text
    with pytest.raises(OptionError, match="on or off, not maybe"):
        run_command(chat, "/set stop_loops maybe")


def test_the_templates_own_system_prompt_is_shown() -> None:
    chat, engine = session()
    engine.own_system = "You are Letters."
    assert run_command(chat, "/system").text == "the chat template's own, as none is set: You are Letters."
    run_command(chat, "/system Mine.")
    assert run_command(chat, "/system").text == "Mine."


def test_nobody_is_warned_of_what_nobody_chose() -> None:
    """The starter model brings a top_p; temperature 0 makes it idle."""
    chat, _ = session()
    chat.options, chat.unchosen = SamplingOptions(top_p=0.9), frozenset({"top_p"})
    assert run_command(chat, "/set temp 0").text == "temperature = 0.0"
    assert "does nothing" in run_command(chat, "/set top_p 0.8").text


def test_save_and_load(tmp_path: Path) -> None:
    chat, _ = session("Grüße", "two", system="Be kind.")
    list(chat.ask("Hi"))
    reply = run_command(chat, f"/save '{tmp_path / 'my talk.json'}'")
    assert reply.text.startswith("saved 1 turn to ")
    stored = json.loads((tmp_path / "my talk.json").read_text(encoding="utf-8"))
    assert stored["messages"][2] == {"role": "assistant", "content": "Grüße"}
    other, _ = session()
    run_command(other, f"/load {tmp_path / 'my talk.json'}")
    assert other.turns == chat.turns and other.system == "Be kind."


@pytest.mark.parametrize(
    "content, says",
    [
        ("no json", "is not a saved conversation"),
        ("{}", "messages"),
        ("[" * 5000, "is not a saved conversation"),
        ('[{"role": "assistant", "content": "x"}]', "message 1 is from assistant"),
        ('[{"role": "user", "content": "x"}, {"role": "user", "content": "y"}]', "message 2 is from user"),
        ('[{"role": "user", "content": 5}]', "message 1 needs"),
        ("[5]", "message 1 needs"),
    ],
)
def test_load_of_something_else_changes_nothing(tmp_path: Path, content: str, says: str) -> None:
    chat, _ = session("one")
    list(chat.ask("Hi"))
    (tmp_path / "f").write_text(content)
    with pytest.raises(OptionError, match=says):
        run_command(chat, f"/load {tmp_path / 'f'}")
    assert chat.turns == [Turn("Hi", "one")]


def test_save_and_load_of_impossible_files(tmp_path: Path) -> None:
    chat, _ = session()
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for line, says in (
        (f"/load {tmp_path}/none", "cannot read"),
        (f"/load {tmp_path}/binary", "is not a saved conversation"),
        (f"/save {tmp_path}/no/such/folder/f", "cannot be written"),
        ("/save", "needs a file"),
        ("/load", "needs a file"),
    ):
        with pytest.raises((OptionError, OutputError), match=says):
            run_command(chat, line)


@pytest.mark.parametrize(
    "line, name, value",
    [
        ("/set temp 0.5", "temperature", 0.5),
        ("/set temperature 0", "temperature", 0.0),
        ("/set parameter top_k 10", "top_k", 10),
        ("/set top-p 0.9", "top_p", 0.9),
        ("/set repeat_penalty 1.1", "repeat_penalty", 1.1),
        ("/set seed 42", "seed", 42),
        ("/set samplers top_k;temperature", "samplers", ("top_k", "temperature")),
        ("/set sampling_seq kt", "samplers", ("top_k", "temperature")),
        ("/set logit_bias 5+1 7-inf", "logit_bias", ((5, 1.0), (7, float("-inf")))),
        (r"/set dry_sequence_breaker '\n' ';'", "dry_sequence_breakers", ("\n", ";")),
    ],
)
def test_set(line: str, name: str, value: object) -> None:
    chat, _ = session()
    assert run_command(chat, line).text
    assert getattr(chat.options, name) == value


def test_set_length_and_list() -> None:
    chat, _ = session()
    run_command(chat, "/set num_predict 12")
    assert chat.max_tokens == 12
    assert "12" in run_command(chat, "/set").text
    run_command(chat, "/set n_predict -1")
    assert chat.max_tokens is None
    run_command(chat, '/set system "Be brief."')
    assert chat.system == "Be brief."


@pytest.mark.parametrize(
    "line, says",
    [
        ("/set temp hot", "temperature"),
        ("/set top_p 7", "0 to 1"),
        ("/set top_k 1.5", "top_k"),
        ("/set temprature 1", "did you mean temperature"),
        ("/set nonsense 1", "/set lists them"),
        ("/set temp", "needs a value"),
        ("/set num_predict many", "whole number"),
        ("/set num_ctx 9", "start again"),
        ("/set logit_bias what", "logit-bias"),
        ("/set samplers none_such", "unknown sampler"),
        ("/regn", "did you mean /regen"),
        ("/", "/help"),
        ("/etc/passwd", "a space in front"),
        ("/undo", "nothing to undo"),
        ("/regen", "no answer yet"),
    ],
)
def test_bad_commands_say_what_to_do_and_change_nothing(line: str, says: str) -> None:
    chat, _ = session()
    with pytest.raises(OptionError) as caught:
        run_command(chat, line)
    assert says in str(caught.value)
    assert chat.options == SamplingOptions() and chat.turns == []


def test_a_setting_without_effect_is_told() -> None:
    chat, _ = session()
    run_command(chat, "/set temp 0")
    assert "does nothing" in run_command(chat, "/set top_k 3").text


def test_system_undo_clear_stats_help_bye() -> None:
    chat, _ = session("one", "two")
    assert "no system prompt" in run_command(chat, "/system").text
    run_command(chat, r"/system Line one\nLine two")
    assert chat.system == "Line one\nLine two"
    assert run_command(chat, "/system").text == chat.system
    run_command(chat, "/system none")
    assert chat.system is None
    list(chat.ask("Hi"))
    list(chat.ask("Bye"))
    stats = run_command(chat, "/stats").text
    assert "turns      2" in stats and "of 1000 tokens" in stats and "1.5 tokens/s" in stats
    assert "Bye" in run_command(chat, "/undo").text
    assert chat.turns == [Turn("Hi", "one")]
    run_command(chat, "/CLEAR ")
    assert chat.turns == []
    assert "/regen" in run_command(chat, "/help").text
    assert run_command(chat, "/bye").leave and run_command(chat, "/exit").leave
    for line in ("/clear now", "/undo 2", "/bye x", "/exit 1", "/stats all", "/continue 5", "/regen it"):
        with pytest.raises(OptionError, match="stands alone, without"):
            run_command(chat, line)


def test_regen_command_streams() -> None:
    chat, _ = session("one", "two")
    list(chat.ask("Hi"))
    answer = run_command(chat, "/regen").answer
    assert answer is not None and said(answer) == "two"


def test_help_names_every_command_of_the_issue() -> None:
    for name in ("help", "clear", "regen", "undo", "set", "system", "save", "load", "stats", "bye"):
        assert f"/{name}" in COMMAND_NAMES and f"/{name}" in HELP


def test_help_names_every_command_and_key() -> None:
    for name in COMMAND_NAMES:
        assert name in HELP
    for key in ("Enter", "Alt-Enter", "Tab", "Up", "Ctrl-R", "Ctrl-C", "Ctrl-D", '"""'):
        assert key in HELP
    assert max(map(len, HELP.splitlines())) <= 80


def test_a_leading_space_makes_a_message() -> None:
    assert is_command("/x") and not is_command(" /x")


def test_usage_counts_drafts() -> None:
    usage = Usage(3, 0, 8, 1.0, 2.0, 6, 4) + Usage(3, 0, 2, 1.0, 1.0, 1, 1)
    assert usage_text(usage).endswith("; 5 of 7 drafted came true")
    assert "drafted" not in usage_text(Usage(3, 0, 8, 1.0, 2.0))
