"""The shield: a guard model, scanners, or both, that judge what people ask and what models answer.

One mechanism for `serve`, `batch`, `chat` and `complete` (`--guard`, `--shield`). A prompt that is unsafe is
not answered, and an answer ends before the window of it that is unsafe. It fails closed: what cannot be
judged is not answered. Words of the operator (the roles system and developer, descriptions of tools, the
template's variables) are not judged; results of tools count as the user's for a guard model, and have
scanners of their own (`shield_scanners.py`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

from pyllamacpu.api.tools import NO_TOOLS, ChatTools
from pyllamacpu.engine.driver import Cancellation
from pyllamacpu.engine.generate import GenerationStats, TextEvent
from pyllamacpu.errors import OptionError, UnseenImageError
from pyllamacpu.images.parts import has_image
from pyllamacpu.safety.guard import Guard, Verdict
from pyllamacpu.safety.shield_scanners import Finding, ShieldScanners, What
from pyllamacpu.text.call_forms import ToolCall
from pyllamacpu.text.call_parts import Part, join_parts

log = logging.getLogger("pyllamacpu.safety")

WINDOW = 64  # tokens of an answer that are held back until they are judged, with all before them
MOST_HELD = 16 * WINDOW  # tokens that wait for the end of a piece of code
_OPERATORS = ("system", "developer")
_READ = ("role", "content", "tool_calls")
_NAME = re.compile(r"[\w.-]{1,64}")
_THREADS = 4  # checks that run at once, in one batch

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class ShieldOptions:
    """scanners: names in SCANNERS. prompt_guard: the file of its model. guard: that of a guard model; what it
    judges by is as for `Guard`: categories are pairs of a key and words, None the model's own.
    """

    scanners: tuple[str, ...] = ()
    prompt_guard: str | None = None
    guard: str | None = None
    categories: tuple[tuple[str, str], ...] | None = None
    exclude: tuple[str, ...] = ()
    threshold: float = 0.5


class Conversation(NamedTuple):
    """What a prompt says. `beginning`: of the answer, which may call `tools`. Images of `messages` are parts
    {"type": "image", "image": ...} of their contents.
    """

    messages: Sequence[Mapping[str, Any]]
    beginning: str = ""
    tools: ChatTools = NO_TOOLS


_NOT_SCANNED = "shield: not scanned: %s"
_IMAGES_PASS = "images: a guard model that reads them would judge them"


@dataclass(frozen=True)
class BlockedEvent(TextEvent):
    """The end of an answer that is not to be seen, or not to its end."""

    findings: tuple[Finding, ...] = ()


class Piece(NamedTuple):
    """An event of one answer."""

    answer: int  # its number
    event: TextEvent


class End(Protocol):
    """Ends an answer in the engine, which was given the tokens so far."""

    def __call__(self, answer: int, stats: GenerationStats) -> None: ...


class _Answer:
    """What an answer has said so far, and the events of it that are held back."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation, self.said = conversation, ""
        self.n_tokens = self.n_held = 0  # tokens
        self._judged_next = WINDOW  # tokens that are held until then
        self._held: list[TextEvent] = []
        self._reader = conversation.tools.reader()
        self._parts: list[Part] = []

    def add(self, event: TextEvent) -> bool:
        """Whether it is time to judge the answer."""
        self._held.append(event)
        self.said += event.text
        self.n_tokens += len(event.tokens)
        self.n_held += len(event.tokens)
        self._parts += self._reader.push(event.text)
        if event.finish_reason is not None:
            self._parts += self._reader.finish()
        return event.finish_reason is not None or self.n_held >= self._judged_next

    @property
    def is_whole(self) -> bool:
        """Whether nothing of it may be left for later."""
        return self._held[-1].finish_reason is not None or self.n_held >= MOST_HELD

    def wait(self) -> None:
        """Holds what is held for another window."""
        self._judged_next = self.n_held + WINDOW

    def take(self) -> list[TextEvent]:
        """The events that have not been taken."""
        held, self._held, self.n_held = self._held, [], 0
        self._judged_next = WINDOW
        return held

    def stats(self, event: TextEvent, n_prompt: int) -> GenerationStats:
        """Of an answer that ends with `event`."""
        return event.stats or GenerationStats(n_prompt, 0, self.n_tokens, 0.0, 0.0)

    @property
    def calls(self) -> list[ToolCall]:
        """As far as they have come."""
        return join_parts(self._parts).calls


class Shield:
    """`load` comes first, in any thread. Raises OptionError for scanners that are not known.

    Args:
        open_images: puts pictures in place of the images of messages, as a `Guard` takes them.
        on_blocked: is told what was blocked, and why.
    """

    def __init__(
        self,
        options: ShieldOptions,
        open_images: Callable[[Messages], Sequence[Mapping[str, Any]]] = list,
        on_blocked: Callable[[What, Sequence[Finding]], None] = lambda what, found: None,
    ) -> None:
        self._options, self._open_images, self._on_blocked = options, open_images, on_blocked
        self._guard: Guard | None = None
        self._scanners = ShieldScanners(options.scanners, options.prompt_guard) if options.scanners else None
        self._workers = ThreadPoolExecutor(_THREADS, thread_name_prefix="guard")
        self._is_closed = self._noted_images = False

    def load(self) -> None:
        """Raises any PyllamacpuError."""
        if self._options.guard is not None:
            given = self._options
            self._guard = Guard(
                self._options.guard,
                categories=None if given.categories is None else dict(given.categories),
                exclude=given.exclude,
                threshold=given.threshold,
            )
        if self._scanners is not None:
            self._scanners.load()
        for words in self.not_scanned(with_images=False):
            log.info(_NOT_SCANNED, words)

    def not_scanned(self, with_images: bool) -> list[str]:
        """What passes without being looked at, in words, where images may come or not. (Those that a guard
        does not read are refused.)
        """
        own = [_IMAGES_PASS] if with_images and self._options.guard is None else []
        return own + (self._scanners.not_scanned if self._scanners is not None else [])

    def note_images(self) -> None:
        """Logs once, where images may come, that nobody looks at them, if that is so."""
        if self._options.guard is None and not self._noted_images:
            self._noted_images = True
            log.info(_NOT_SCANNED, _IMAGES_PASS)

    @property
    def weight_bytes(self) -> int:
        """Of the guard model, 0 before it is loaded, and of Prompt Guard's."""
        own = 0 if self._guard is None else self._guard.weight_bytes
        return own + (0 if self._scanners is None else self._scanners.weight_bytes)

    async def judge_prompt(self, conversation: Conversation) -> tuple[Finding, ...]:
        """What is unsafe in what users and tools said."""
        found: tuple[Finding, ...] = ()
        if self._options.guard is not None:
            messages = self._messages(conversation)
            said = [m["role"] == "user" and _says_something(m["content"]) for m in messages]
            if any(said):  # the last of them is judged, with all before it
                last = len(said) - said[::-1].index(True)
                found += await self._ask_guard(messages[:last], "input")
        elif any(map(_images, conversation.messages)):
            self.note_images()
        if self._scanners is not None:
            found += await self._scanners.read(plain_messages(conversation.messages))
        return self._report(found, "input")

    def _messages(self, conversation: Conversation) -> Messages:
        assert self._guard is not None
        return judged_messages(conversation.messages, conversation.beginning, self._guard.reads_images)

    async def _judge_answer(self, answer: _Answer) -> tuple[tuple[Finding, ...], bool]:
        """What is unsafe in it so far, and whether it must go on before that can be said."""
        conversation, said = answer.conversation, answer.said
        if not said.strip():
            return (), False
        found: tuple[Finding, ...] = ()
        if self._options.guard is not None:
            found += await self._ask_guard(_with_answer(self._messages(conversation), said), "output")
        waits = False
        if self._scanners is not None:
            whole = conversation.beginning + said
            more, waits = await self._scanners.judge_answer(whole, answer.calls, answer.is_whole)
            found += more
        return self._report(found, "output"), waits and not found

    def _report(self, found: tuple[Finding, ...], what: What) -> tuple[Finding, ...]:
        if found:
            self._on_blocked(what, found)
        for one in found:
            log.info("%s: %s is blocked (%s, %.3f)", one.scanner, what, one.status, one.score)
        return found

    async def watch(
        self,
        pieces: AsyncIterator[Piece],
        conversations: Callable[[int], Conversation],
        n_prompt: Callable[[int], int],
        end: End,
    ) -> AsyncIterator[Piece]:
        """`pieces` as far as they are safe, a window at a time; an answer that is not is ended."""
        answers: dict[int, _Answer] = {}
        ended: set[int] = set()
        async for i, event in pieces:
            if i in ended:
                continue
            if i not in answers:
                answers[i] = _Answer(conversations(i))
            answer = answers[i]
            if not answer.add(event):
                continue
            findings, waits = await self._judge_answer(answer)
            if waits:
                answer.wait()
                continue
            if findings:
                ended.add(i)
                stats = answer.stats(event, n_prompt(i))
                end(i, stats)
                yield Piece(i, blocked(stats, findings))
                continue
            for one in answer.take():
                yield Piece(i, one)
                await asyncio.sleep(0)  # a window of them at once would hold up others, and see no leaving

    def answer(
        self, conversation: Conversation, n_prompt: int, start: Callable[[], Iterator[TextEvent]]
    ) -> Iterator[TextEvent]:
        """One answer's events as far as they are safe, where no event loop runs; `start` begins it, if the
        prompt of `n_prompt` tokens is safe. Raises any PyllamacpuError for what cannot be judged.
        """
        if findings := asyncio.run(self.judge_prompt(conversation)):
            yield blocked(GenerationStats(n_prompt, 0, 0, 0.0, 0.0), findings)
            return
        answer, events = _Answer(conversation), start()
        with closing(events):  # type: ignore[type-var]  # iterators of events are generators
            for event in events:
                if not answer.add(event):
                    continue
                findings, waits = asyncio.run(self._judge_answer(answer))
                if waits:
                    answer.wait()
                    continue
                if findings:
                    yield blocked(answer.stats(event, n_prompt), findings)
                    return
                yield from answer.take()

    async def _ask_guard(self, messages: Messages, what: What) -> tuple[Finding, ...]:
        if messages[0]["role"] != "user":
            messages = [{"role": "user", "content": ""}, *messages]
        verdict = await self._off_loop(partial(self._check, messages))
        if verdict.verdict == "safe":
            return ()
        return (Finding("guard", what, ",".join(verdict.categories), verdict.probability),)

    async def _off_loop(self, check: Callable[[], Verdict]) -> Verdict:
        """Runs it in a worker; it ends soon when nobody waits for it any more."""
        cancellation = Cancellation()

        def run() -> Verdict:
            with cancellation:
                return check()

        try:
            return await asyncio.get_running_loop().run_in_executor(self._workers, run)
        except asyncio.CancelledError:
            cancellation.cancel()
            raise

    def _check(self, messages: Messages) -> Verdict:
        assert self._guard is not None
        if self._is_closed:
            raise OptionError("the shield is closed")
        return self._guard.check(self._open_images(messages))

    def close(self) -> None:
        """Waits for what runs; what is asked later is an error."""
        self._is_closed = True
        self._workers.shutdown(wait=True)
        if self._guard is not None:
            self._guard.close()
        if self._scanners is not None:
            self._scanners.close()


def blocked(stats: GenerationStats, findings: tuple[Finding, ...]) -> TextEvent:
    """The end of an answer that is not to be seen."""
    return BlockedEvent("", finish_reason="content_filter", stats=stats, findings=findings)


def _with_answer(messages: Messages, said: str) -> Messages:
    """With an answer behind it, which may go on in the middle of a word."""
    if messages and messages[-1]["role"] == "assistant":
        *messages, beginning = messages
        said = beginning["content"] + said
    return [*messages, {"role": "assistant", "content": said}]


def _says_something(content: Any) -> bool:
    return bool(content.strip()) if isinstance(content, str) else bool(content)


def judged_messages(
    messages: Sequence[Mapping[str, Any]], beginning: str = "", reads_images: bool = False
) -> Messages:
    """A conversation as a guard reads it: user and assistant, texts, and images as they are in it.
    `beginning`: of the answer. Raises UnseenImageError for images that the guard does not read: nothing
    passes that nobody has judged.
    """
    found: Messages = []
    for i, message in enumerate(messages):
        images = _images(message)
        if images and not reads_images:
            where = getattr(images[0].get("image"), "where", f"messages[{i}]")
            raise UnseenImageError(where, "the guard reads no images")
        role = str(message.get("role"))
        if role in _OPERATORS:
            continue
        text = _text(message)
        content = [*images, {"type": "text", "text": text}] if images else text
        found.append({"role": "assistant" if role == "assistant" else "user", "content": content})
    if beginning:
        found.append({"role": "assistant", "content": beginning})
    return found


def _images(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = message.get("content")
    return [part for part in content if has_image(part)] if isinstance(content, (list, tuple)) else []


def plain_messages(messages: Sequence[Mapping[str, Any]]) -> Messages:
    """All roles as they are, texts only."""
    return [{"role": str(message.get("role")), "content": _text(message)} for message in messages]


def _text(message: Mapping[str, Any]) -> str:
    """All that a message says: calls of tools included, and other fields, which a template may show."""
    content = message.get("content")
    parts = (
        [content] if isinstance(content, str) else [*content] if isinstance(content, (list, tuple)) else []
    )
    texts = [part if isinstance(part, str) else str(part.get("text") or "") for part in parts]
    calls = [json.dumps(call, ensure_ascii=False) for call in message.get("tool_calls") or ()]
    others = [_field(value) for name, value in message.items() if name not in _READ]
    return "\n".join(filter(None, [*texts, *calls, *others]))


def _field(value: Any) -> str:
    """What it says: names and ids, numbers and nothing say nothing."""
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False) if isinstance(value, (Mapping, list)) and value else ""
    return "" if _NAME.fullmatch(value) else value
