"""`serve --guard` and `--shield`: what people ask and what models answer is judged, in every dialect.

A prompt that is unsafe gets an empty answer, and an answer ends before the window of it that is unsafe, both
with a reason of their own (`endings.py`). It fails closed: what cannot be judged is not answered. Words of
the operator (the roles system and developer, descriptions of tools, the template's variables) are not judged;
results of tools count as the user's for a guard model, and have scanners of their own in the shield
(`shield.py`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, Protocol

from pyllamacpu.api.tools import NO_TOOLS, ChatTools
from pyllamacpu.engine.generate import GenerationStats, TextEvent
from pyllamacpu.images.sources import Fetch
from pyllamacpu.safety import Guard, Verdict
from pyllamacpu.server.errors import HTTPError, as_http_error
from pyllamacpu.server.images import sent_images, with_pictures
from pyllamacpu.server.metrics import Metrics
from pyllamacpu.server.shield import BlockedEvent, Finding, Shield, What
from pyllamacpu.text.call_forms import ToolCall
from pyllamacpu.text.tool_calls import Part, join_parts

log = logging.getLogger("pyllamacpu.server")

WINDOW = 64  # tokens of an answer that are held back until they are judged, with all before them
_OPERATORS = ("system", "developer")
_READ = ("role", "content", "tool_calls")
_NAME = re.compile(r"[\w.-]{1,64}")
_THREADS = 4  # checks that run at once, in one batch

Messages = list[dict[str, Any]]


class Conversation(NamedTuple):
    """What a prompt says. `beginning`: of the answer, which may call `tools`."""

    messages: Sequence[Mapping[str, Any]]
    beginning: str = ""
    tools: ChatTools = NO_TOOLS


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
        self._held: list[TextEvent] = []
        self._reader = conversation.tools.reader()
        self._parts: list[Part] = []

    def add(self, event: TextEvent) -> None:
        self._held.append(event)
        self.said += event.text
        self.n_tokens += len(event.tokens)
        self.n_held += len(event.tokens)
        self._parts += self._reader.push(event.text)
        if event.finish_reason is not None:
            self._parts += self._reader.finish()

    def take(self) -> list[TextEvent]:
        """The events that have not been taken."""
        held, self._held, self.n_held = self._held, [], 0
        return held

    @property
    def calls(self) -> list[ToolCall]:
        """As far as they have come."""
        return join_parts(self._parts).calls


class Judge:
    """The guard model and the shield of a server, or one of them. `load` comes first, in any thread."""

    def __init__(
        self,
        path: str | None,
        metrics: Metrics,
        shield: Shield | None = None,
        fetch: Fetch | None = None,
    ) -> None:
        """fetch: gets images at URLs, where that is allowed."""
        self._path, self._metrics, self._shield, self._fetch = path, metrics, shield, fetch
        self._guard: Guard | None = None
        self._workers = ThreadPoolExecutor(_THREADS, thread_name_prefix="guard")

    def load(self) -> None:
        """Raises any PyllamacpuError."""
        if self._path is not None:
            self._guard = Guard(self._path)
        if self._shield is not None:
            self._shield.load()

    @property
    def weight_bytes(self) -> int:
        """Of the guard model, 0 before it is loaded, and of the shield's."""
        own = int(getattr(self._guard, "weight_bytes", 0))
        return own + (0 if self._shield is None else self._shield.weight_bytes)

    @property
    def _reads_images(self) -> bool:
        return bool(getattr(self._guard, "reads_images", False))

    async def refuses(self, conversation: Conversation) -> tuple[Finding, ...]:
        """What is unsafe in what users and tools said."""
        found: tuple[Finding, ...] = ()
        if self._path is not None:
            messages = self._messages(conversation)
            said = [m["role"] == "user" and _says_something(m["content"]) for m in messages]
            if any(said):  # the last of them is judged, with all before it
                last = len(said) - said[::-1].index(True)
                found += await self._ask_guard(messages[:last], "input")
        if self._shield is not None:
            found += await self._shield.read(plain_messages(conversation.messages))
        return self._counted(found, "input")

    def _messages(self, conversation: Conversation) -> Messages:
        return judged_messages(conversation.messages, conversation.beginning, self._reads_images)

    async def _judge_answer(self, answer: _Answer) -> tuple[Finding, ...]:
        conversation, said = answer.conversation, answer.said
        if not said.strip():
            return ()
        found: tuple[Finding, ...] = ()
        if self._path is not None:
            found += await self._ask_guard(_with_answer(self._messages(conversation), said), "output")
        if self._shield is not None:
            found += await self._shield.judge_answer(conversation.beginning + said, answer.calls)
        return self._counted(found, "output")

    def _counted(self, found: tuple[Finding, ...], what: What) -> tuple[Finding, ...]:
        if found:
            self._metrics.blocked.labels(what).inc()
        for one in found:
            self._metrics.findings.labels(one.scanner, what, one.status).inc()
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
            answer.add(event)
            if event.finish_reason is None and answer.n_held < WINDOW:
                continue
            if findings := await self._judge_answer(answer):
                ended.add(i)
                stats = event.stats or GenerationStats(n_prompt(i), 0, answer.n_tokens, 0.0, 0.0)
                end(i, stats)
                yield Piece(i, blocked(stats, findings))
                continue
            for one in answer.take():
                yield Piece(i, one)
                await asyncio.sleep(0)  # a window of them at once would hold up others, and see no leaving

    async def _ask_guard(self, messages: Messages, what: What) -> tuple[Finding, ...]:
        if messages[0]["role"] != "user":
            messages = [{"role": "user", "content": ""}, *messages]
        try:
            check = partial(self._check, messages)
            verdict = await asyncio.get_running_loop().run_in_executor(self._workers, check)
        except Exception as error:
            raise as_http_error(error) from error
        if verdict.verdict == "safe":
            return ()
        return (Finding("guard", what, ",".join(verdict.categories), verdict.probability),)

    def _check(self, messages: Messages) -> Verdict:
        assert self._guard is not None
        return self._guard.check(with_pictures(messages, self._fetch))

    def close(self) -> None:
        self._workers.shutdown(wait=True, cancel_futures=True)
        if self._guard is not None:
            self._guard.close()
        if self._shield is not None:
            self._shield.close()


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
    """A conversation as a guard reads it: user and assistant, texts, and images as they were sent.
    `beginning`: of the answer. Raises HTTPError for images that the guard does not read.
    """
    for image in () if reads_images else sent_images(messages):  # nothing passes that nobody has judged
        where = image.where
        raise HTTPError(
            f"{where}: this server's guard reads no images", param=where, code="images_not_supported"
        )
    found: Messages = []
    for message in messages:
        role = str(message.get("role"))
        if role in _OPERATORS:
            continue
        speaker = "assistant" if role == "assistant" else "user"
        text, images = _text(message), [{"type": "image", "image": image} for image in sent_images([message])]
        content = [*images, {"type": "text", "text": text}] if images else text
        found.append({"role": speaker, "content": content})
    if beginning:
        found.append({"role": "assistant", "content": beginning})
    return found


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
