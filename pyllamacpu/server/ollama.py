"""Ollama's dialect: generate, chat, embed. Its models are those of the store (`ollama_models`).

Source: https://github.com/ollama/ollama/blob/main/docs/api.md. Answers are streamed as lines of JSON unless
`stream` is false. Sampling defaults are this server's, as in the other dialects.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from pyllamacpu.api.responses import chat_logprobs
from pyllamacpu.api.tools import NO_TOOLS
from pyllamacpu.engine.generate import TextEvent
from pyllamacpu.sampling.sampler import TokenLogprobs
from pyllamacpu.server import http
from pyllamacpu.server.adapters import read_lora
from pyllamacpu.server.constraints import ollama_grammar
from pyllamacpu.server.embeddings import read_inputs
from pyllamacpu.server.endings import shown_findings
from pyllamacpu.server.fields import Fields, wrong
from pyllamacpu.server.generation import Answers, Generate, Service
from pyllamacpu.server.images import RESULT_ROLES, image_part, images_after_results, with_images_first
from pyllamacpu.server.logprobs import read_logprobs
from pyllamacpu.server.messages import read_messages
from pyllamacpu.server.models import Model
from pyllamacpu.server.ollama_create import NO_EFFECT
from pyllamacpu.server.ollama_shapes import NDJSON, failed, keep_alive, model_name, nanoseconds, now
from pyllamacpu.server.prompts import Chat, Text
from pyllamacpu.server.sampling_fields import BIG, WIDE, read_sampling
from pyllamacpu.server.tools import read_tools, split_whole, tools_of_answer, with_cut_as_text
from pyllamacpu.text.call_forms import ToolCall
from pyllamacpu.text.call_parts import Part


def router(service: Service, strict: bool) -> APIRouter:
    """The routes of the dialect; with `strict` unknown fields are refused."""
    routes = APIRouter()

    @routes.post("/api/generate")
    async def generate(request: Request) -> Response:
        fields = await http.read_fields(request)
        return await http.answer(request, _Generate(service, fields, strict).answer())

    @routes.post("/api/chat")
    async def chat(request: Request) -> Response:
        fields = await http.read_fields(request)
        return await http.answer(request, _Chat(service, fields, strict).answer())

    @routes.post("/api/embed")
    async def embed(request: Request) -> Response:
        fields = await http.read_fields(request)
        return await http.answer(request, _embed(service, fields, strict))

    @routes.post("/api/embeddings")
    async def embeddings(request: Request) -> Response:
        fields = await http.read_fields(request)
        return await http.answer(request, _embeddings(service, fields, strict))

    return routes


class _Endpoint(ABC):
    """What generate and chat share."""

    def __init__(self, service: Service, fields: Fields, strict: bool) -> None:
        self.service, self.fields, self.strict = service, fields, strict
        self.started = time.perf_counter()
        self.load_seconds = 0.0
        self.tools = NO_TOOLS

    @abstractmethod
    def prompt(self, model: Model) -> Chat | Text | None:
        """None: only the model is to be loaded (or unloaded)."""

    @abstractmethod
    def piece(self, text: str, calls: Sequence[ToolCall] = ()) -> dict[str, Any]:
        """The field that carries text and calls."""

    def more(self, answers: Answers) -> dict[str, Any]:
        """Fields of the last object."""
        return {}

    async def answer(self) -> Response:
        fields, models = self.fields, self.service.models
        stay, stream = keep_alive(fields), fields.flag("stream", True)
        async with AsyncExitStack() as stack:
            model = await stack.enter_async_context(models.use(model_name(fields), stay))
            self.load_seconds = time.perf_counter() - self.started
            self.model = model.name
            prompt = self.prompt(model)
            if prompt is None:  # nothing is generated: these have no effect
                fields.ignore("options", "format", "think", "logprobs", "top_logprobs", "lora")
            request = None if prompt is None else self.request(model, prompt)
            fields.finish(self.strict)
            if request is None:
                return self.only_load(stay)
            answers = await stack.enter_async_context(self.service.generate(model, [request]))
            if stream:
                return http.Stream(stack.pop_all(), self.lines(answers), failed, NDJSON)
            (events,) = await answers.whole()
            text = "".join(event.text for event in events)
            entries = [entry for event in events for entry in event.logprobs]
            return http.json_response(self.final(answers, events[-1], text, entries))

    def only_load(self, stay: float | None) -> Response:
        reason = "unload" if stay == 0 else "load"
        return http.json_response({**self.head(), **self.piece(""), "done": True, "done_reason": reason})

    def request(self, model: Model, prompt: Chat | Text) -> Generate:
        fields = self.fields
        fields.refuse("think", "the model does not think aloud", False)
        options = fields.nested("options")
        n_ctx = model.engine.n_ctx
        wanted = options.integer("num_ctx", 1, BIG)
        if wanted is not None and wanted > n_ctx:
            raise options.wrong("num_ctx", f"{wanted} is more than this server's context of {n_ctx} (-c)")
        if wanted is not None and wanted < n_ctx:
            options.note("options.num_ctx: less than the server's context (-c), which is used")
        options.ignore(*NO_EFFECT)
        options.refuse("penalize_newline", "newlines are penalized like other tokens", True)
        limit = options.integer("num_predict", -2, BIG)
        form = ollama_grammar(fields)
        self.tools = tools_of_answer(fields, self.tools, form, model)
        if isinstance(prompt, Chat):
            prompt = replace(prompt, tools=self.tools)
        sampling = read_sampling(options, model, WIDE)
        request = Generate(
            prompt,
            sampling,
            max_tokens=n_ctx if limit is not None and limit <= 0 else limit,  # 0 and less: until the end
            stop=options.strings("stop"),
            logprobs=read_logprobs(fields),
            grammar=self.tools.form or form,
            adapters=read_lora(fields, model),
            stop_loops=options.optional_flag("stop_loops"),
            draft=options.flag("draft", True),
        )
        options.finish(self.strict)
        return request

    def head(self) -> dict[str, Any]:
        return {"model": self.model, "created_at": now()}

    async def lines(self, answers: Answers) -> AsyncIterator[bytes]:
        reader = self.tools.reader()
        unfinished: list[Part] = []  # calls come whole here
        entries: list[TokenLogprobs] = []  # of tokens whose text is yet to be sent
        async for _, event in answers.pieces():
            entries += event.logprobs
            parts = [*unfinished, *reader.push(event.text)]
            is_last = event.finish_reason is not None
            found, unfinished = split_whole([*parts, *reader.finish()] if is_last else parts, is_last)
            if found.text or found.calls:
                piece = {**self.piece(found.text, found.calls), **_logprobs(answers, entries)}
                yield http.ndjson({**self.head(), **piece, "done": False})
                entries = []
            if is_last:
                yield http.ndjson(self.final(answers, event, "", entries))

    def final(
        self, answers: Answers, last: TextEvent, text: str, entries: Sequence[TokenLogprobs]
    ) -> dict[str, Any]:
        stats, found = last.stats, with_cut_as_text(self.tools.read(text))
        assert stats is not None
        return {
            **self.head(),
            **self.piece(found.text, found.calls),
            **_logprobs(answers, entries),
            "done": True,
            "done_reason": last.finish_reason,
            **shown_findings(last),
            "total_duration": nanoseconds(time.perf_counter() - self.started),
            "load_duration": nanoseconds(self.load_seconds),
            "prompt_eval_count": stats.n_prompt,
            "prompt_eval_duration": nanoseconds(stats.prompt_seconds),
            "eval_count": stats.n_generated,
            "eval_duration": nanoseconds(stats.generate_seconds),
            **self.more(answers),
        }


class _Generate(_Endpoint):
    def prompt(self, model: Model) -> Chat | Text | None:
        fields = self.fields
        for name in ("template", "context"):
            fields.refuse(name, "is not supported", [], "")
        text, system, suffix = fields.text("prompt") or "", fields.text("system"), fields.text("suffix")
        raw = fields.flag("raw")
        if system and (raw or suffix):
            raise fields.wrong(
                "system", f"does not go with {'raw' if raw else 'a suffix'}: it has no template"
            )
        images = [image_part(part, f"images[{i}]") for i, part in enumerate(_images(fields.items("images")))]
        if not text and not suffix and not images:
            return None
        if suffix:
            if images:
                raise fields.wrong("images", "do not go with a suffix")
            return Text(text, suffix)
        if raw:
            return Text(text, images=tuple(part["image"] for part in images))
        messages = [{"role": "system", "content": system}] if system else []
        said = {"role": "user", "content": text}
        shown = with_images_first(images, said) if images else said
        return Chat([*messages, shown], where="prompt")

    def piece(self, text: str, calls: Sequence[ToolCall] = ()) -> dict[str, Any]:
        return {"response": text}


class _Chat(_Endpoint):
    def prompt(self, model: Model) -> Chat | Text | None:
        self.tools = read_tools(self.fields)
        if self.fields.raw("messages") in (None, []):
            return None
        messages = read_messages(self.fields, own_images=True)
        shown = images_after_results([_with_own_images(message, i) for i, message in enumerate(messages)])
        return Chat(shown, tools=self.tools)

    def piece(self, text: str, calls: Sequence[ToolCall] = ()) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if calls:
            rows = [{"name": call.name, "arguments": json.loads(call.arguments)} for call in calls]
            message["tool_calls"] = [{"function": row} for row in rows]
        return {"message": message}


def _logprobs(answers: Answers, entries: Sequence[TokenLogprobs]) -> dict[str, Any]:
    """The field of the tokens of a piece, where they were asked for."""
    return {"logprobs": chat_logprobs(answers.model.tokenizer, entries)["content"]} if entries else {}


def _images(values: Any) -> list[dict[str, Any]]:
    """Images in base64, or as this dialect has them from others: data URLs."""
    found = []
    for value in values:
        is_url = isinstance(value, str) and value[:5].lower() == "data:"
        found.append({"url" if is_url else "base64": value})
    return found


def _with_own_images(message: dict[str, Any], index: int) -> dict[str, Any]:
    """A message whose `images` stand before its text."""
    values, where = message.pop("images", None), f"messages[{index}].images"
    if not values:
        return message
    if not isinstance(values, list):
        raise wrong(where, "must be a list of images in base64")
    if (role := message["role"]) not in ("user", *RESULT_ROLES):
        raise wrong(where, f"images stand in messages of the user and tools, not of {role!r:.40}")
    images = [image_part(part, f"{where}[{i}]") for i, part in enumerate(_images(values))]
    return with_images_first(images, message)


async def _vectors(
    service: Service,
    fields: Fields,
    strict: bool,
    inputs: Sequence[str | Sequence[int]],
    shape: Callable[[list[Any]], dict[str, Any]],
    where: str = "input",
    cut: bool = False,
) -> Response:
    started = time.perf_counter()
    async with service.models.use(model_name(fields), keep_alive(fields)) as model:
        loaded = time.perf_counter() - started
        truncate = fields.flag("truncate", cut)
        if fields.integer("dimensions", 1, BIG) not in (None, model.engine.dim):
            raise fields.wrong("dimensions", f"this model's vectors have {model.engine.dim}")
        adapters = read_lora(fields, model)
        fields.ignore("options")
        fields.finish(strict)
        vectors: list[Any] = []
        n_tokens = 0
        if inputs:  # else only the model is to be loaded (or unloaded)
            vectors, n_tokens = await service.embed(
                model, inputs, truncate=truncate, where=where, adapters=adapters
            )
        return http.json_response(
            {
                "model": model.name,
                **shape(vectors),
                "total_duration": nanoseconds(time.perf_counter() - started),
                "load_duration": nanoseconds(loaded),
                "prompt_eval_count": n_tokens,
            }
        )


async def _embed(service: Service, fields: Fields, strict: bool) -> Response:
    """Texts that are too long are cut unless `truncate` is false, as Ollama does it."""
    inputs = [] if fields.raw("input") in (None, "", []) else read_inputs(fields)
    return await _vectors(service, fields, strict, inputs, lambda v: {"embeddings": v}, cut=True)


async def _embeddings(service: Service, fields: Fields, strict: bool) -> Response:
    inputs = [] if fields.raw("prompt") in (None, "") else read_inputs(fields, "prompt", at_most=1)
    return await _vectors(
        service,
        fields,
        strict,
        inputs,
        lambda vectors: {"embedding": vectors[0] if vectors else []},
        "prompt",
    )
