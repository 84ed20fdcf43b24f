"""OpenAI's dialect: models, chat completions, completions, embeddings.

Source: https://platform.openai.com/docs/api-reference. llama.cpp's sampling options are taken too.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response

from pyllamacpu.api.responses import Heading, LogprobWriter, chat_logprobs
from pyllamacpu.engine.generate import TextEvent
from pyllamacpu.server import http
from pyllamacpu.server.adapters import read_lora
from pyllamacpu.server.constraints import openai_grammar
from pyllamacpu.server.endings import openai_reason
from pyllamacpu.server.errors import openai_error
from pyllamacpu.server.fields import Fields
from pyllamacpu.server.generation import Answers, Chat, Generate, Service, Text, prompt_ids
from pyllamacpu.server.logprobs import prompt_logprobs
from pyllamacpu.server.messages import read_messages
from pyllamacpu.server.models import Model
from pyllamacpu.server.sampling_fields import BIG, read_sampling
from pyllamacpu.server.tools import call_id, read_tools
from pyllamacpu.text.tool_calls import Part, ToolCallDelta, ToolCallReader

_MAX_ANSWERS = 128
_MAX_TOP = 20
_NOT_EXTRA = {"messages", "tools", "add_generation_prompt", "check"}  # not the template's own
_NO_EFFECT = ("user", "service_tier", "store", "metadata", "safety_identifier", "prompt_cache_key")
_NOT_HERE = {
    "audio": "audio is not supported",
    "web_search_options": "web search is not supported",
    "prediction": "predicted outputs are not supported",
    "reasoning_effort": "the model has no reasoning effort",
    "verbosity": "the model has no verbosity",
    "moderation": "moderation is not supported",
}


def router(service: Service, strict: bool) -> APIRouter:
    """The routes of the dialect; with `strict` unknown fields are refused."""
    routes = APIRouter()

    @routes.get("/v1/models")
    @routes.get("/models")
    async def models() -> Response:
        files = await service.off_loop(service.models.files)
        return http.json_response(
            {"object": "list", "data": [_model_entry(f.name, f.modified) for f in files]}
        )

    @routes.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        file = await service.off_loop(service.models.find, name)
        return http.json_response(_model_entry(file.name, file.modified))

    @routes.post("/v1/chat/completions")
    @routes.post("/chat/completions")
    async def chat_completions(request: Request) -> Response:
        fields = await http.read_fields(request)
        return await http.answer(request, ENDPOINTS["/v1/chat/completions"](service, fields, strict))

    @routes.post("/v1/completions")
    async def completions(request: Request) -> Response:
        fields = await http.read_fields(request)
        return await http.answer(request, ENDPOINTS["/v1/completions"](service, fields, strict))

    @routes.post("/v1/embeddings")
    @routes.post("/embeddings")
    async def embeddings(request: Request) -> Response:
        fields = await http.read_fields(request)
        return await http.answer(request, ENDPOINTS["/v1/embeddings"](service, fields, strict))

    return routes


def _model_entry(name: str, modified: float) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": int(modified), "owned_by": "pyllamacpu"}


def usage(answers: Answers) -> dict[str, Any]:
    n_prompt, n_generated = answers.n_prompt, answers.n_generated
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_generated,
        "total_tokens": n_prompt + n_generated,
        "prompt_tokens_details": {"cached_tokens": answers.n_cached},
    }


class _Endpoint:
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

    def requests(self, fields: Fields, model: Model, stream: bool) -> list[Generate]:
        raise NotImplementedError

    def started(self, answers: Answers, requests: Sequence[Generate]) -> None:
        """The prompts are tokenized."""

    def whole(self, heading: Heading, events: list[list[TextEvent]], answers: Answers) -> dict[str, Any]:
        choices = [self.choice(i, own) for i, own in enumerate(events)]
        return wrap(heading, self.kind, choices, usage=usage(answers))

    def choice(self, index: int, events: Sequence[TextEvent]) -> dict[str, Any]:
        raise NotImplementedError

    def deltas(self, index: int, event: TextEvent) -> list[dict[str, Any]]:
        """What an event brings."""
        raise NotImplementedError

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

    def closing(self, index: int, event: TextEvent) -> dict[str, Any]:
        raise NotImplementedError


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


class _Chat(_Endpoint):
    kind, chunk_kind = "chat.completion", "chat.completion.chunk"

    def requests(self, fields: Fields, model: Model, stream: bool) -> list[Generate]:
        messages = read_messages(fields)
        self.tools = read_tools(fields)
        for name, why in _NOT_HERE.items():
            fields.refuse(name, why)
        _check_modalities(fields)
        fields.ignore(*_NO_EFFECT, "cache_prompt")
        wanted = fields.flag("logprobs")
        n_top = fields.integer("top_logprobs", 0, _MAX_TOP)
        if n_top is not None and not wanted:
            raise fields.wrong("top_logprobs", "needs logprobs to be true")
        self.logprobs = (n_top or 0) if wanted else None
        limit = fields.integer("max_completion_tokens", 1, BIG)
        older = fields.integer("max_tokens", 1, BIG)
        form = openai_grammar(fields)
        if form is not None and self.tools.offered:
            raise fields.wrong("tools", "do not go with a form of the answer")
        request = Generate(
            Chat(messages, tools=self.tools, extra=_template_extra(fields)),
            read_sampling(fields, model),
            max_tokens=older if limit is None else limit,
            stop=fields.strings("stop"),
            logprobs=self.logprobs,
            n=fields.integer("n", 1, _MAX_ANSWERS) or 1,
            ignore_eos=fields.flag("ignore_eos"),
            grammar=self.tools.form or form,
            adapters=read_lora(fields, model),
            stop_loops=fields.optional_flag("stop_loops"),
            draft=fields.flag("draft", True),
        )
        return [request]

    def choice(self, index: int, events: Sequence[TextEvent]) -> dict[str, Any]:
        answer = self.tools.read("".join(event.text for event in events))
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.calls:
            calls = [_begun(call.name, call.arguments) for call in answer.calls]
            message |= {"content": answer.text or None, "tool_calls": calls}
        return {
            "index": index,
            "message": message,
            "logprobs": self.entries(events),
            **openai_reason(events[-1], answer.has_called),
        }

    def started(self, answers: Answers, requests: Sequence[Generate]) -> None:
        self.tokenizer = answers.model.tokenizer
        self.readers: dict[int, ToolCallReader] = {}
        self.silent: set[int] = set()  # answers of which no text or call was sent yet

    def entries(self, events: Sequence[TextEvent]) -> dict[str, Any] | None:
        if self.logprobs is None:
            return None
        return chat_logprobs(self.tokenizer, [entry for event in events for entry in event.logprobs])

    def opening(self, index: int) -> dict[str, Any]:
        self.silent.add(index)
        delta = {"role": "assistant", "content": None if self.tools.offered else ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def deltas(self, index: int, event: TextEvent) -> list[dict[str, Any]]:
        if not event.text and not event.tokens:
            return []
        parts, entries = self.reader(index).push(event.text), self.entries([event])
        if not parts and entries is not None:
            parts = [""]  # what is held back has its logprobs all the same
        return [self.shown(index, part, None if i else entries) for i, part in enumerate(parts)]

    def ending(self, index: int) -> list[dict[str, Any]]:
        parts = self.reader(index).finish()
        if index in self.silent and not parts:
            parts = [""]  # an answer without calls has a content
        return [self.shown(index, part, None) for part in parts]

    def closing(self, index: int, event: TextEvent) -> dict[str, Any]:
        reason = openai_reason(event, self.reader(index).has_called)
        return {"index": index, "delta": {}, "logprobs": None, **reason}

    def shown(self, index: int, part: Part, logprobs: Any) -> dict[str, Any]:
        self.silent.discard(index)
        delta = {"content": part} if isinstance(part, str) else {"tool_calls": [_call_delta(part)]}
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}

    def reader(self, index: int) -> ToolCallReader:
        if index not in self.readers:
            self.readers[index] = self.tools.reader()
        return self.readers[index]


def _begun(name: str, arguments: str = "") -> dict[str, Any]:
    return {"id": call_id(), "type": "function", "function": {"name": name, "arguments": arguments}}


def _call_delta(part: ToolCallDelta) -> dict[str, Any]:
    """Id and name stand in the first piece only."""
    if part.name is not None:
        return {"index": part.index, **_begun(part.name)}
    return {"index": part.index, "function": {"arguments": part.arguments}}


def _check_modalities(fields: Fields) -> None:
    if any(kind != "text" for kind in fields.items("modalities")):
        raise fields.wrong("modalities", "only text is supported")


def _template_extra(fields: Fields) -> dict[str, Any]:
    """Variables for the chat template, as llama.cpp and vLLM name them."""
    value = fields.raw("chat_template_kwargs")
    if value is None:
        return {}
    if not isinstance(value, dict) or _NOT_EXTRA & value.keys():
        raise fields.wrong("chat_template_kwargs", "must be an object of the template's own variables")
    return value


class _Completion(_Endpoint):
    kind = chunk_kind = "text_completion"

    def requests(self, fields: Fields, model: Model, stream: bool) -> list[Generate]:
        prompts = _prompts(fields)
        fields.ignore(*_NO_EFFECT, "cache_prompt")
        suffix = fields.text("suffix")
        self.echo = fields.flag("echo")
        self.logprobs = _n_logprobs(fields)
        self.n = fields.integer("n", 1, _MAX_ANSWERS) or 1
        best_of = fields.integer("best_of", 1, _MAX_ANSWERS) or self.n
        if best_of < self.n:
            raise fields.wrong("best_of", f"{best_of} is less than n, which is {self.n}")
        if best_of > self.n and stream:
            raise fields.wrong("best_of", "the best cannot be chosen while answers are streamed")
        if self.echo and suffix is not None:
            raise fields.wrong("echo", "does not go with a suffix")
        limit = fields.integer("max_tokens", 0 if self.echo else 1, BIG)
        self.ranked = best_of > self.n
        n_top = 0 if self.logprobs is None and self.ranked else self.logprobs
        options = read_sampling(fields, model)
        stop, ignore_eos = fields.strings("stop"), fields.flag("ignore_eos")
        grammar, adapters = openai_grammar(fields), read_lora(fields, model)
        stop_loops = fields.optional_flag("stop_loops")
        draft = fields.flag("draft", True)
        return [
            Generate(
                Text(prompt, suffix),
                options,
                max_tokens=16 if limit is None else limit,
                stop=stop,
                logprobs=n_top,
                n=best_of,
                ignore_eos=ignore_eos,
                grammar=grammar,
                adapters=adapters,
                stop_loops=stop_loops,
                draft=draft,
            )
            for prompt in prompts
        ]

    async def prepare(self, model: Model, requests: Sequence[Generate]) -> None:
        self.echoed: list[str] = []
        self.first: list[Any] = []
        for request in requests if self.echo else ():
            assert isinstance(request.prompt, Text)
            text = request.prompt.text
            ids = await self.service.off_loop(prompt_ids, model, Text(text))
            self.echoed.append(text if isinstance(text, str) else model.tokenizer.decode(ids))
            self.first.append(
                ()
                if self.logprobs is None
                else await prompt_logprobs(self.service, model, ids, self.logprobs, request.adapters)
            )

    def started(self, answers: Answers, requests: Sequence[Generate]) -> None:
        self.prompt_of = [i for i, request in enumerate(requests) for _ in range(request.n)]
        self.writers = [LogprobWriter(answers.model.tokenizer, 0) for _ in self.prompt_of]
        if not self.echo:
            lengths = [_n_characters(answers.model, request.prompt) for request in requests]
            self.writers = [LogprobWriter(answers.model.tokenizer, lengths[p]) for p in self.prompt_of]

    def table(self, index: int, events: Sequence[TextEvent]) -> dict[str, Any] | None:
        """The logprobs of an answer's events."""
        if self.logprobs is None:
            return None
        return self.writers[index].table([entry for event in events for entry in event.logprobs])

    def whole(self, heading: Heading, events: list[list[TextEvent]], answers: Answers) -> dict[str, Any]:
        choices = []
        for prompt in range(len(answers.prompts)):
            own = [i for i, p in enumerate(self.prompt_of) if p == prompt]
            if self.ranked:
                own = sorted(own, key=lambda i: -_likelihood(events[i]))[: self.n]
            choices += [self.choice(i, events[i]) for i in own]
        numbered = [{**choice, "index": i} for i, choice in enumerate(choices)]
        return wrap(heading, self.kind, numbered, usage=usage(answers))

    def choice(self, index: int, events: Sequence[TextEvent]) -> dict[str, Any]:
        before = self.opening(index) or {"text": "", "logprobs": None}
        text = before["text"] + "".join(event.text for event in events)
        table = self.table(index, events)
        if table is not None and before["logprobs"] is not None:
            table = {name: before["logprobs"][name] + table[name] for name in table}
        return {"text": text, "index": index, "logprobs": table, **openai_reason(events[-1])}

    def opening(self, index: int) -> dict[str, Any] | None:
        if not self.echo:
            return None
        prompt = self.prompt_of[index]
        table = None if self.logprobs is None else self.writers[index].table(self.first[prompt])
        return {"text": self.echoed[prompt], "index": index, "logprobs": table, "finish_reason": None}

    def deltas(self, index: int, event: TextEvent) -> list[dict[str, Any]]:
        if not event.text and not event.tokens:
            return []
        table = self.table(index, [event])
        return [{"text": event.text, "index": index, "logprobs": table, "finish_reason": None}]

    def closing(self, index: int, event: TextEvent) -> dict[str, Any]:
        return {"text": "", "index": index, "logprobs": None, **openai_reason(event)}


def _n_characters(model: Model, prompt: Chat | Text) -> int:
    assert isinstance(prompt, Text)
    return len(prompt.text if isinstance(prompt.text, str) else model.tokenizer.decode(prompt.text))


def _likelihood(events: Sequence[TextEvent]) -> float:
    values = [entry.logprob for event in events for entry in event.logprobs]
    return sum(values) / len(values) if values else 0.0


def _n_logprobs(fields: Fields) -> int | None:
    """`logprobs` is a number here; true and false, as chat has them, are taken as 0 and none."""
    value = fields.raw("logprobs")
    if isinstance(value, bool):
        return 0 if value else None
    return fields.integer("logprobs", 0, _MAX_TOP)


def _prompts(fields: Fields) -> list[str | list[int]]:
    """A text, token ids, or a list of either."""
    value = fields.raw("prompt")
    if value is None:
        raise fields.wrong("prompt", "is missing")
    if isinstance(value, str) or (value and _are_ids(value)):
        return [value]
    if not isinstance(value, list) or not value:
        raise fields.wrong("prompt", "must be a text, token ids, or a list of them")
    for item in value:
        if not isinstance(item, str) and not (item and _are_ids(item)):
            raise fields.wrong("prompt", "must be a text, token ids, or a list of them")
    if len(value) > _MAX_ANSWERS:
        raise fields.wrong("prompt", f"{len(value)} prompts; allowed: at most {_MAX_ANSWERS}")
    return value


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


async def _embeddings(service: Service, fields: Fields, strict: bool) -> Response:
    async with service.models.use(fields.text("model")) as model:
        inputs = read_inputs(fields)
        form = fields.choice("encoding_format", ("float", "base64"), "float")
        dimensions = fields.integer("dimensions", 1, BIG)
        if dimensions not in (None, model.engine.dim):
            raise fields.wrong("dimensions", f"this model's vectors have {model.engine.dim}")
        fields.ignore(*_NO_EFFECT)
        fields.finish(strict)
        vectors, n_tokens = await service.embed(model, inputs)
        shown = [_base64(v) for v in vectors] if form == "base64" else vectors
        data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(shown)]
        counts = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
        return http.json_response({"object": "list", "data": data, "model": model.name, "usage": counts})


def read_inputs(fields: Fields, name: str = "input", at_most: int = 2048) -> list[str | list[int]]:
    """A text, token ids, or a list of either."""
    value = fields.raw(name)
    if value is None:
        raise fields.wrong(name, "is missing")
    values = [value] if isinstance(value, str) or (value and _are_ids(value)) else value
    if not isinstance(values, list) or not values:
        raise fields.wrong(name, "must be a text, token ids, or a list of them")
    if not all(isinstance(item, str) or (item and _are_ids(item)) for item in values):
        raise fields.wrong(name, "must be a text, token ids, or a list of them")
    if len(values) > at_most:
        raise fields.wrong(name, f"{len(values)} inputs; allowed: at most {at_most}")
    return values


def _base64(vector: Sequence[float]) -> str:
    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode("ascii")


def _chat(service: Service, fields: Fields, strict: bool) -> Awaitable[Response]:
    return _Chat(service, strict).answer(fields)


def _completion(service: Service, fields: Fields, strict: bool) -> Awaitable[Response]:
    return _Completion(service, strict).answer(fields)


ENDPOINTS: Mapping[str, Callable[[Service, Fields, bool], Awaitable[Response]]] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completion,
    "/v1/embeddings": _embeddings,
}
"""What answers a body, by path; with True, unknown fields are refused. They raise HTTPError."""
