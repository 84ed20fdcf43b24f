"""What OpenAI's chat and text completions share: from a body to an answer, whole or streamed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

from fastapi.responses import Response

from pyllamacpu.api.responses import Heading
from pyllamacpu.engine.generate import TextEvent
from pyllamacpu.server import http
from pyllamacpu.server.errors import openai_error
from pyllamacpu.server.fields import Fields
from pyllamacpu.server.generation import Answers, Generate, Service
from pyllamacpu.server.models import Model

MAX_ANSWERS = 128
NO_EFFECT = ("user", "service_tier", "store", "metadata", "safety_identifier", "prompt_cache_key",
             "prompt_cache_retention", "prompt_cache_options")  # fmt: skip


def usage(answers: Answers) -> dict[str, Any]:
    n_prompt, n_generated = answers.n_prompt, answers.n_generated
    n_image = sum(token < 0 for ids in answers.prompts for token in ids)
    images = {"image_tokens": n_image} if n_image else {}
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_generated,
        "total_tokens": n_prompt + n_generated,
        "prompt_tokens_details": {"cached_tokens": answers.n_cached, **images},
    }


class Endpoint(ABC):
    """What chat and completions share: from fields to a response, whole or streamed."""

    kind: str  # the object's name
    chunk_kind: str

    def __init__(self, service: Service, strict: bool) -> None:
        self.service, self.strict = service, strict
        self.include_usage = False
        self.logprobs: int | None = None

    async def answer(self, fields: Fields) -> Response:
        async with AsyncExitStack() as stack:
            model = await stack.enter_async_context(self.service.models.use(fields.text("model")))
            stream = fields.flag("stream")
            options = fields.nested("stream_options")
            self.include_usage = options.flag("include_usage")
            options.ignore("include_obfuscation")
            options.finish(self.strict)
            requests = self.requests(fields, model, stream)
            fields.finish(self.strict)
            await self.prepare(model, requests)
            answers = await stack.enter_async_context(self.service.generate(model, requests))
            self.started(answers, requests)
            heading = Heading(model.name)
            if not stream:
                return http.json_response(self.whole(heading, await answers.whole(), answers))
            kept = stack.pop_all()
            return http.Stream(kept, self.chunks(heading, answers), lambda e: http.sse(openai_error(e)))

    async def prepare(self, model: Model, requests: Sequence[Generate]) -> None:
        """What must be known of the prompts before they are answered."""
        return

    @abstractmethod
    def requests(self, fields: Fields, model: Model, stream: bool) -> list[Generate]: ...

    def started(self, answers: Answers, requests: Sequence[Generate]) -> None:
        """The prompts are tokenized."""
        return

    def whole(self, heading: Heading, events: list[list[TextEvent]], answers: Answers) -> dict[str, Any]:
        choices = [self.choice(i, own) for i, own in enumerate(events)]
        return wrap(heading, self.kind, choices, usage=usage(answers))

    @abstractmethod
    def choice(self, index: int, events: Sequence[TextEvent]) -> dict[str, Any]: ...

    @abstractmethod
    def deltas(self, index: int, event: TextEvent) -> list[dict[str, Any]]:
        """What an event brings."""

    def opening(self, index: int) -> dict[str, Any] | None:
        """The first chunk of an answer."""
        return None

    async def chunks(self, heading: Heading, answers: Answers) -> AsyncIterator[bytes]:
        more = {"usage": None} if self.include_usage else {}
        opened: set[int] = set()
        async for index, event in answers.pieces():
            if index not in opened:
                opened.add(index)
                if (first := self.opening(index)) is not None:
                    yield http.sse(wrap(heading, self.chunk_kind, [first], **more))
            for shown in self.deltas(index, event):
                yield http.sse(wrap(heading, self.chunk_kind, [shown], **more))
            if event.finish_reason is not None:
                for shown in self.ending(index):
                    yield http.sse(wrap(heading, self.chunk_kind, [shown], **more))
                yield http.sse(wrap(heading, self.chunk_kind, [self.closing(index, event)], **more))
        if self.include_usage:
            yield http.sse(wrap(heading, self.chunk_kind, [], usage=usage(answers)))
        yield http.sse("[DONE]")

    def ending(self, index: int) -> list[dict[str, Any]]:
        """What was held back until the end of an answer."""
        return []

    @abstractmethod
    def closing(self, index: int, event: TextEvent) -> dict[str, Any]: ...


def wrap(heading: Heading, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    prefix = "chat" if kind.startswith("chat.") else ""
    return {
        "id": prefix + heading.id,
        "object": kind,
        "created": heading.created,
        "model": heading.model,
        "choices": choices,
        **more,
    }
