"""A conversation, independent of any terminal: turns, what fits into the context, and answers as events."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pyllamacpu.cli.adapter_options import AdapterHolder
from pyllamacpu.cli.images import ImageFile, saved_content
from pyllamacpu.cli.saved_chat import SAVED_CHAT, Turn, read_saved
from pyllamacpu.cli.shield_options import blocked_text
from pyllamacpu.cli.usage import Usage, context_full
from pyllamacpu.errors import ContextError, OptionError
from pyllamacpu.files import check_output, write_whole
from pyllamacpu.text.call_parts import Part, join_parts
from pyllamacpu.text.tool_calls import ToolCallReader

if TYPE_CHECKING:
    from pyllamacpu.api.tools import ChatTools
    from pyllamacpu.safety.shield import Shield
    from pyllamacpu.sampling.grammar import Grammar
    from pyllamacpu.text import ChatTemplate
    from pyllamacpu.text.call_forms import ToolCall

OnPrompt = Callable[[int, int], None]
"""Called with the prompt tokens read so far, and all of them."""

MAX_ROUNDS = 8  # of calls for one message
_ROOM_FOR_ANSWER = 8  # an answer gets at least 1/8 of the context, or turns are dropped
_ROOM_AFTER_DROP = 4  # and when turns are dropped, 1/4 is made free, so that it is not needed again at once


class TextEvent(Protocol):
    """A piece of an answer; the last one of a stream carries the reason and the numbers."""

    text: str
    tokens: Sequence[int]
    finish_reason: str | None
    stats: Any


class Engine(AdapterHolder, Protocol):
    """What a conversation needs of a model."""

    def title(self) -> str: ...

    def n_ctx(self) -> int: ...

    def render(self, messages: list[dict[str, Any]]) -> list[int]: ...

    def describe(self, image: ImageFile) -> str: ...

    @property
    def reads_images(self) -> bool: ...

    stop_loops: bool  # whether an answer that repeats itself is ended
    form: Grammar | None  # that answers must have
    on_image: Callable[[], None]  # called before images of a prompt are looked at

    def encode(self, text: str) -> list[int]: ...

    def default_system(self) -> str | None: ...

    def stream(
        self,
        prompt_tokens: list[int],
        options: Any,
        max_tokens: int | None,
        stop: Sequence[str],
        on_prompt: OnPrompt | None,
        n_said: int,  # of the prompt's last tokens, which the answer began with
    ) -> Iterator[Any]: ...


class Toolbox(Protocol):
    """What a conversation needs of its tools: what is offered for the first answer to a message, and after
    results; and their results. (`toolbox.Toolbox`)
    """

    first: ChatTools
    later: ChatTools

    def written_in(self, template: ChatTemplate) -> None: ...

    def run(self, call: ToolCall) -> Generator[Event, None, str]: ...


@dataclass(frozen=True)
class Text:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True)
class Notice:
    """Something that the person should know, which is not part of the answer."""

    text: str


@dataclass
class Question:
    """Something that the person must decide, and how; who shows it puts in the reply."""

    text: str
    choices: str
    reply: str = ""


@dataclass(frozen=True)
class Finished:
    """The end of an answer: why, and what it cost."""

    reason: str  # "stop", "length", "loop" or "content_filter"
    usage: Usage


Event = Text | Notice | Question | Finished


@dataclass
class _Answer:
    """An answer in the making."""

    turn: Turn
    tokens: list[int] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    reason: str = ""  # as of Finished; none while it runs, or when a person stops it
    n_before: int = 0  # of the tokens that were there already, when it is gone on with
    n_unseen: int = 0  # of its first tokens that no longer fit into the prompt
    told_unseen: bool = False
    first_event: float | None = None  # when the running stream began to answer, by time.perf_counter
    offer: ChatTools | None = None  # that it may call
    reader: ToolCallReader | None = None  # of calls in the text
    parts: list[Part] = field(default_factory=list)  # of calls
    n_counted: int = 0  # tokens of earlier rounds of calls that the usage has

    @property
    def n_new(self) -> int:
        """Tokens generated now."""
        return len(self.tokens) - self.n_before


class ChatSession:
    """A conversation with `engine`. Everything that happens comes as events; nothing is printed here."""

    def __init__(
        self,
        engine: Engine,
        options: Any,
        system: str | None = None,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        inputs: Sequence[Path] = (),
    ) -> None:
        self.engine = engine
        self.inputs = tuple(inputs)  # files that are never written to
        self.options = options  # SamplingOptions
        self.system = system or None
        self.max_tokens = max_tokens
        self.stop = tuple(stop)
        self.turns: list[Turn] = []
        self.images: list[ImageFile] = []  # that go with the next message
        self.has_form = False  # answers are made to fit a grammar
        self.tools: Toolbox | None = None
        self.shield: Shield | None = None  # that judges messages, results of tools and answers
        self.show_timings = True  # a line with the speed behind each answer
        self.unchosen: frozenset[str] = frozenset()  # sampling options that the model brought along
        self.n_dropped = 0  # of the oldest turns, which the prompt no longer has
        self.last = Usage()
        self.last_reason = ""
        self.total = Usage()
        self._tries = 0  # how often the last message was answered again

    def messages(
        self, turns: Sequence[Turn] | None = None, open_turn: Turn | None = None
    ) -> list[dict[str, Any]]:
        """The conversation in the form that chat templates take; `open_turn` waits for its answer.

        `turns` None is all of them, also those that the prompt no longer has.
        """
        result: list[dict[str, Any]] = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns if turns is None else turns:
            result += [*turn.asked, {"role": "assistant", "content": turn.assistant}]
        return result + (open_turn.asked if open_turn is not None else [])

    def ask(self, text: str, on_prompt: OnPrompt | None = None) -> Iterator[Event]:
        """Answer `text`. Closing the iterator stops the answer; what came until then stays.

        Raises ContextError when the message alone is longer than the context; nothing is changed then.
        """
        self._tries = 0
        images, self.images = tuple(self.images), []
        turn = Turn(text, images=images, n_dropped=self.n_dropped)
        try:
            yield from self._respond(turn, None, on_prompt)
        except BaseException:
            if not (self.turns and self.turns[-1] is turn):
                self.images = [*images, *self.images]  # for another try
            raise

    def regenerate(self, on_prompt: OnPrompt | None = None) -> Iterator[Event]:
        """Answer the last message again; the old answer stays if no new one comes. Raises OptionError."""
        if not self.turns:
            raise OptionError("there is no answer yet to generate again")
        n_dropped, old = self.n_dropped, self.undo()
        turn = Turn(old.user, images=old.images, n_dropped=self.n_dropped)
        self._tries += 1
        try:
            yield from self._respond(turn, old, on_prompt)
        finally:
            if self.turns and self.turns[-1] is old:
                self.n_dropped = n_dropped

    def resume(self, on_prompt: OnPrompt | None = None) -> Iterator[Event]:
        """Go on with the last answer where a limit, the end of the context or a person stopped it.

        Raises OptionError when there is no such answer.
        """
        self.check_resumable()
        n_dropped, old = self.n_dropped, self.undo()
        tokens = old.tokens or self.engine.encode(old.assistant)
        turn = Turn(old.user, old.assistant, images=old.images, n_dropped=old.n_dropped)
        turn.steps += old.steps
        self.n_dropped = n_dropped  # the prompt goes on as it was
        yield from self._respond(turn, old, on_prompt, list(tokens))

    def check_resumable(self) -> None:
        """Raises OptionError when there is no answer that `resume` could go on with."""
        if not self.turns:
            raise OptionError("there is no answer yet to go on with")
        if self.turns[-1].ended:
            raise OptionError("the last answer ended by itself; ask for more, or /regen answers again")
        if self.turns[-1].in_tool:
            raise OptionError("the last answer was stopped while a function ran; /regen answers again")
        if self.has_form and not self.turns[-1].is_unanswered:
            raise OptionError(
                "an answer with a grammar or a schema cannot be gone on with; /regen answers again"
            )

    @property
    def is_resumable(self) -> bool:
        """Whether there is an answer that `resume` goes on with."""
        try:
            self.check_resumable()
        except OptionError:
            return False
        return True

    def _respond(
        self, turn: Turn, fallback: Turn | None, on_prompt: OnPrompt | None, said: Sequence[int] = ()
    ) -> Iterator[Event]:
        """Answer `turn`, which begins with the tokens `said`."""
        answer = _Answer(turn, list(said), n_before=len(said))
        try:
            yield from (
                self._generate(answer, on_prompt)
                if self.tools is None
                else self._rounds(answer, self.tools, on_prompt)
            )
            yield Finished(answer.reason, answer.usage)
        finally:
            if answer.first_event is not None:  # stopped before the engine could report
                seconds = time.perf_counter() - answer.first_event
                counted = answer.n_new - (answer.usage.n_generated - answer.n_counted)
                answer.usage += Usage(n_generated=counted, generate_seconds=seconds)
            if not answer.reason and answer.reader is not None:
                self._keep_what_was_held(answer)
            turn.tokens, turn.ended = answer.tokens, answer.reason == "stop" and not turn.in_tool
            is_empty = not (turn.assistant or turn.steps or answer.usage.n_generated)
            if not is_empty and answer.reason != "content_filter":
                self.turns.append(turn)
            elif fallback:
                self.turns.append(fallback)
            self.last_reason = answer.reason
            self.last, self.total = answer.usage, self.total + answer.usage

    def _keep_what_was_held(self, answer: _Answer) -> None:
        """The end of an answer that a person stopped, as far as it is not shown because it may be a call."""
        assert answer.reader is not None
        answer.parts += answer.reader.finish()
        held = join_parts(answer.parts)
        answer.turn.assistant += held.text
        answer.turn.in_tool = answer.turn.in_tool or bool(held.calls)

    def _rounds(self, answer: _Answer, tools: Toolbox, on_prompt: OnPrompt | None) -> Iterator[Event]:
        """Stream the answer; when it calls tools, run them and answer again with the results."""
        turn = answer.turn
        offer = tools.later if answer.n_before or turn.steps else tools.first
        for round_number in range(MAX_ROUNDS + 1):
            answer.offer, answer.reader, self.engine.form = offer, offer.reader(), offer.form
            yield from self._generate(answer, on_prompt)
            if answer.reason == "content_filter":
                return  # nothing of it is run
            calls = join_parts(answer.parts).calls
            if any(not call.whole for call in calls):
                yield Notice("a call was cut short and is not run")
            if not (calls := [call for call in calls if call.whole]):
                return
            if round_number == MAX_ROUNDS:
                yield Notice(f"stopped: {MAX_ROUNDS} rounds of calls are the limit for one message")
                return
            turn.in_tool = True
            for call in calls:
                result = yield from tools.run(call)
                turn.steps += _call_messages(call, len(turn.steps), result, turn.assistant)
                turn.assistant = ""
            turn.in_tool = False
            answer.n_counted, answer.n_before = answer.usage.n_generated, 0
            answer.tokens.clear()
            answer.parts.clear()
            offer = tools.later

    def _parts(self, answer: _Answer, event: TextEvent) -> Iterator[Event]:
        """What an event shows of the answer: its text; calls are kept for the end."""
        if answer.reader is None:
            parts: list[Part] = [event.text] if event.text else []
        else:
            parts = answer.reader.push(event.text)
            if event.finish_reason is not None and not self._cut_by_context(answer):
                parts += answer.reader.finish()
        for part in parts:
            if isinstance(part, str):
                answer.turn.assistant += part
                yield Text(part)
            else:
                answer.parts.append(part)

    def _generate(self, answer: _Answer, on_prompt: OnPrompt | None) -> Iterator[Event]:
        """Stream the answer; when the context fills up meanwhile, drop turns and go on where it stopped."""
        while True:
            if self.has_form and answer.tokens:
                raise OptionError("an answer with a grammar or a schema cannot be gone on with")
            before, answer.reason = self.n_dropped, ""
            prompt = self._fit(answer)
            if dropped := self.n_dropped - before:
                yield Notice(_dropped_text(dropped))
            if answer.n_unseen and not answer.told_unseen:
                answer.told_unseen = True
                yield Notice("the context is full: the model no longer sees the beginning of this answer")
            budget = None if self.max_tokens is None else self.max_tokens - answer.n_new
            options = self._seeded(answer)
            said = len(answer.tokens) - answer.n_unseen
            start = partial(self.engine.stream, prompt, options, budget, self.stop, on_prompt, said)
            for event in self._shielded(answer, len(prompt), start):
                answer.first_event = answer.first_event or time.perf_counter()
                answer.tokens.extend(event.tokens)
                if event.finish_reason is not None:
                    answer.reason = event.finish_reason
                    answer.usage += event.stats
                    answer.first_event = None
                yield from self._parts(answer, event)
            if answer.reason == "content_filter":
                yield Notice(f"{blocked_text(event.findings)}; nothing of it is kept")
            if answer.reason == "loop":
                yield Notice("stopped: the answer repeats itself (--no-stop-loops lets it)")
            if not self._cut_by_context(answer):
                break
            if self.n_dropped == len(self.turns):
                yield Notice(context_full(self.engine.n_ctx()))
                break

    def _shielded(self, answer: _Answer, n_prompt: int, start: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        """The events of the answer that `start` begins, as far as the shield lets them pass."""
        if self.shield is None:
            return start()
        from pyllamacpu.api.tools import NO_TOOLS
        from pyllamacpu.safety.shield import Conversation

        messages = self.messages(self.turns[self.n_dropped :], answer.turn)
        said = Conversation(messages, answer.turn.assistant, answer.offer or NO_TOOLS)
        events: Iterator[Any] = self.shield.answer(said, n_prompt, start)
        return events

    def _seeded(self, answer: _Answer) -> Any:
        """The options for the next stream: with a fixed seed, a new try or a continuation draws anew."""
        steps = self._tries + len(answer.tokens)  # a continued answer draws other numbers, too
        if not steps or self.options.seed < 0:
            return self.options
        return replace(self.options, seed=(self.options.seed + steps) % 2**32)

    def _cut_by_context(self, answer: _Answer) -> bool:
        """True when the answer ended because the context is full, not because of its own limit."""
        if answer.reason != "length":
            return False
        return self.max_tokens is None or answer.n_new < self.max_tokens

    def _fit(self, answer: _Answer) -> list[int]:
        """Tokens of the conversation and the answer so far; whole oldest turns are dropped to make room, and
        of an answer that is continued its beginning.

        Raises ContextError when even the last message alone is too long.
        """
        n_ctx = self.engine.n_ctx()
        wanted = n_ctx if self.max_tokens is None else max(self.max_tokens - answer.n_new, 1)
        first, prompt = self.n_dropped, self._prompt(self.n_dropped, answer)
        if len(prompt) + min(wanted, n_ctx // _ROOM_FOR_ANSWER) > n_ctx:
            room = min(wanted, n_ctx // _ROOM_AFTER_DROP)
            while first < len(self.turns) and len(prompt) + room > n_ctx:
                first += 1
                prompt = self._prompt(first, answer)
            excess = len(prompt) + room - n_ctx
            if excess > 0 and answer.n_before:
                answer.n_unseen = min(answer.n_unseen + excess, len(answer.tokens))
                prompt = self._prompt(first, answer)
        if len(prompt) >= n_ctx:
            raise ContextError(
                f"the message has {len(prompt)} tokens with its frame, the context holds {n_ctx}: "
                "shorten it, or start with a larger context (-c)"
            )
        self.n_dropped = first
        return prompt

    def _prompt(self, first: int, answer: _Answer) -> list[int]:
        """The prompt with the turns from number `first` on."""
        frame = self.engine.render(self.messages(self.turns[first:], answer.turn))
        return frame + answer.tokens[answer.n_unseen :]

    # What commands change

    def attach(self, path: str | Path) -> str:
        """Let an image (its path, or a file:// URL) go with the next message; what it is to the model. Raises
        ImageError, OptionError.
        """
        image = ImageFile.read(path)
        text = self.engine.describe(image)
        self.images.append(image)
        self.inputs = (*self.inputs, Path(image.where))
        return f"{text}, with the next message"

    def undo(self) -> Turn:
        """Forget the last message and its answer. Raises OptionError when there is none."""
        if not self.turns:
            raise OptionError("there is nothing to undo")
        last = self.turns.pop()
        self.n_dropped = last.n_dropped  # what had to go for it is there again
        return last

    def clear(self) -> None:
        """Forget all turns; the system prompt and the options stay."""
        self.turns.clear()
        self.images.clear()
        self.n_dropped = 0

    def context_used(self) -> int:
        """Tokens that the conversation takes now, which is never more than there are."""
        shown = self.turns[self.n_dropped :]
        taken = len(self.engine.render(self.messages(shown))) if shown or self.system else 0
        return min(taken, self.engine.n_ctx())

    def save(self, path: Path, force: bool = False) -> None:
        """Write the conversation as JSON, whole or not at all, for its owner only. Raises OutputError.

        Only a saved conversation is replaced, unless `force`; a file that this chat reads never is.
        """
        check_output(path, self.inputs, SAVED_CHAT, force)
        messages = [
            message | {"content": saved_content(message["content"])} if "content" in message else message
            for message in self.messages()
        ]
        unfinished = bool(self.turns) and not (self.turns[-1].ended or self.turns[-1].in_tool)
        saved = {"messages": messages} | ({"unfinished": True} if unfinished else {})
        content = json.dumps(saved, ensure_ascii=False, indent=2) + "\n"
        write_whole(path, content.encode("utf-8", "replace"), mode=0o600)

    def load(self, path: Path) -> None:
        """Replace the conversation by a saved one; a list of messages as the HTTP API takes it is read too.

        Raises OptionError, with the conversation unchanged, for any other file.
        """
        self.system, self.turns = read_saved(path)
        self.n_dropped = 0


def _call_messages(call: ToolCall, number: int, result: str, text: str) -> list[dict[str, Any]]:
    """A call and its result as two messages; `text` is what the model wrote beside it."""
    call_id = f"call_{number:09d}"  # nine characters or more, as some templates want it
    function = {"name": call.name, "arguments": call.arguments}
    row = {"id": call_id, "type": "function", "function": function}
    return [
        {"role": "assistant", "content": text, "tool_calls": [row]},
        {"role": "tool", "tool_call_id": call_id, "name": call.name, "content": result},
    ]


def _dropped_text(count: int) -> str:
    what = "the oldest turn is" if count == 1 else f"the {count} oldest turns are"
    return f"the context is full: {what} dropped"
